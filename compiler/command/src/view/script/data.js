// The data of the page (`page.rs`), sums of it by module, and what is looked at.
const page = JSON.parse(document.getElementById('data').textContent);
const PHASES = ['forward', 'backward', 'optimizer'];
// Rows that a long list shows at first.
const FIRST_ROWS = 120;
const COSTS = ['compute', 'waiting', 'sent'];

/** Lists of the data that are pairs or tuples there, by names. */
function unpack(view) {
  for (const { operations } of view.listings)
    for (const operation of operations) {
      operation.operands = operation.operands.map(([name, ty]) => ({ name, ty }));
      operation.why = operation.why === null ? '' : view.reasons[operation.why];
    }
  for (const stretch of view.execution.stretches) {
    stretch.drawn = stretch.drawn.map(([lane, at, seconds, action, others]) => ({ lane, at, seconds, action, others }));
  }
}

/** Sums of a plan by module: of the module alone (`own`) and with all that is in it (`all`). */
function summed(view) {
  const none = () => ({ compute: [0, 0, 0], waiting: [0, 0, 0], sent: [0, 0, 0], held: 0 });
  const own = view.modules.map(none),
    all = view.modules.map(none);
  for (const action of view.execution.actions) {
    const of = own[action.module],
      phase = PHASES.indexOf(action.phase);
    of[action.axes ? 'waiting' : 'compute'][phase] += action.of_step;
    of.sent[phase] += action.sent;
  }
  for (const holding of view.arena.holdings) own[holding.module].held += holding.bytes;
  for (let at = view.modules.length - 1; at >= 0; at--) {
    const into = parent => {
      for (const cost of COSTS) for (let p = 0; p < 3; p++) parent[cost][p] += all[at][cost][p];
      parent.held += all[at].held;
    };
    for (const cost of COSTS) for (let p = 0; p < 3; p++) all[at][cost][p] += own[at][cost][p];
    all[at].held += own[at].held;
    if (view.modules[at].parent !== null) into(all[view.modules[at].parent]);
  }
  return { own, all };
}

/** The numbers of a whole program. */
function totals(view) {
  const { actions } = view.execution;
  const kernels = actions.filter(a => !a.axes),
    collectives = actions.filter(a => a.axes);
  const ranks = view.mesh.reduce((n, axis) => n * axis.size, 1);
  return {
    ranks,
    step: view.seconds,
    compute: sum(kernels, a => a.of_step),
    waiting: sum(collectives, a => a.of_step),
    flight: sum(collectives, a => a.seconds),
    kernels: sum(kernels, a => a.count),
    collectives: sum(collectives, a => a.count),
    sent: sum(collectives, a => a.sent),
    memory: view.arena.bytes,
    tokens: page.tokens / view.seconds,
    mfu: view.flops / (view.seconds * ranks * page.rate),
  };
}

const plans = page.plans.map(({ flags, view }, at) => {
  unpack(view);
  const children = view.modules.map(() => []);
  view.modules.forEach((module, at) => module.parent !== null && children[module.parent].push(at));
  return {
    name: 'AB'[at],
    flags,
    view,
    children,
    sums: summed(view),
    totals: totals(view),
    at: new Map(view.modules.map((module, at) => [module.path, at])),
  };
});
const two = plans.length === 2;

/** What is looked at: which plans, which module (by path), which part of it. */
const state = {
  shown: two ? 'both' : 0,
  detail: 0,
  module: '',
  section: 'forward',
  only: false,
  closed: new Set(),
  rows: FIRST_ROWS,
};
const shownPlans = () => (state.shown === 'both' ? plans : [plans[state.shown]]);
const detailPlan = () => plans[state.shown === 'both' ? state.detail : state.shown];

/** The modules of all plans in the order of the tree. */
const tree = (() => {
  const found = [],
    known = new Set();
  const add = (plan, at, depth) => {
    const module = plan.view.modules[at];
    const rows = plan.children[at];
    if (!known.has(module.path)) {
      known.add(module.path);
      found.push({
        path: module.path,
        name: module.name,
        count: module.count,
        element: module.element,
        depth,
        inner: rows.length > 0,
        parent: module.parent === null ? null : plan.view.modules[module.parent].path,
      });
    }
    rows.forEach(child => add(plan, child, depth + 1));
  };
  plans.forEach(plan => add(plan, 0, 0));
  // A module that only the second plan knows stands with the others of its parent.
  return found
    .filter(row => row.parent === null)
    .flatMap(function inside(row) {
      return [row, ...found.filter(other => other.parent === row.path).flatMap(inside)];
    });
})();
const title = path => (path === '' ? 'the whole model' : path);
const short = path => (path === '' ? '(model)' : path);

const hue = axis => `var(--axis${axis % 4})`;
const axisOf = (view, name) =>
  Math.max(
    0,
    view.mesh.findIndex(axis => axis.name === name),
  );
const dashes = axis => (axis % 2 ? '2.2 1.3' : undefined);
