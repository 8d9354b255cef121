// Draws the page from its data (`page.rs`). Texts of the data reach the page as text nodes only, never as markup. With
// `#test` in its address the page checks itself and writes the result into the element `self-check`.
'use strict';

const started = performance.now();
const page = JSON.parse(document.getElementById('data').textContent);
const PHASES = ['forward', 'backward', 'optimizer'];
const HELD = {
  parameters: 'parameters', state: 'optimizer state', gradients: 'gradients', saved: 'saved for the backward pass',
  communication: 'communication buffers', temporaries: 'temporaries', others: 'data and results',
};
// Rows that a long list shows at first.
const FIRST_ROWS = 120;
// The page never has more elements than this, whatever is selected.
const MOST_ELEMENTS = 12000;

// ---------------------------------------------------------------------------------------------------- building blocks

/** An element with attributes, event handlers (functions) and children; texts become text nodes. */
function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for a drawing. */
function s(tag, attributes = {}, ...children) {
  return filled(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === 'function') element.addEventListener(name, value);
    else if (name === 'style') for (const [key, to] of Object.entries(value)) element.style.setProperty(key, to);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat(3).filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

const byId = id => document.getElementById(id);
const show = (id, ...children) => byId(id).replaceChildren(...children.flat(3).filter(Boolean));
const sum = (list, of = x => x) => list.reduce((total, x) => total + of(x), 0);
const px = x => Math.round(x * 100) / 100;

/** A number with three digits and the largest unit that makes it at least 1. */
function scaled(x, units) {
  let [factor, unit] = units[0];
  for (const [f, u] of units) if (Math.abs(x) >= f) [factor, unit] = [f, u];
  const y = x / factor, size = Math.abs(y);
  return `${y.toFixed(size < 10 ? 2 : size < 100 ? 1 : 0)} ${unit}`;
}
const seconds = x => x === 0 ? '0' : scaled(x, [[1e-6, 'µs'], [1e-3, 'ms'], [1, 's']]);
const bytes = x => x === 0 ? '0' : scaled(x, [[1, 'B'], [1e3, 'kB'], [1e6, 'MB'], [1e9, 'GB'], [1e12, 'TB']]);
const count = x => x.toLocaleString('en-US');
const percent = x => `${(100 * x).toFixed(1)}%`;

/** How much `b` is more or less than `a`. */
function change(a, b, text, better = -1) {
  const close = Math.abs(b - a) <= 1e-9 * Math.max(Math.abs(a), Math.abs(b));
  if (close) return h('span', { class: 'quiet' }, '=');
  return h('span', { class: better * (b - a) > 0 ? 'less' : 'more' }, (b < a ? '−' : '+') + text(Math.abs(b - a)));
}

// ------------------------------------------------------------------------------------------------------------ the data

const COSTS = ['compute', 'waiting', 'sent'];

/** Lists of the data that are pairs or tuples there, by names. */
function unpack(view) {
  for (const { operations } of view.listings) for (const operation of operations) {
    operation.operands = operation.operands.map(([name, ty]) => ({ name, ty }));
    operation.why = operation.why === null ? '' : view.reasons[operation.why];
  }
  for (const stretch of view.execution.stretches) {
    stretch.drawn = stretch.drawn.map(([lane, at, seconds, action, others]) => ({ lane, at, seconds, action, others }));
  }
}

/** Sums of a plan by module: of the module alone (`own`) and with all that is in it (`all`). */
function summed(view) {
  const none = () => ({
    compute: [0, 0, 0], waiting: [0, 0, 0], sent: [0, 0, 0], held: 0,
  });
  const own = view.modules.map(none), all = view.modules.map(none);
  for (const action of view.execution.actions) {
    const of = own[action.module], phase = PHASES.indexOf(action.phase);
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
  const kernels = actions.filter(a => !a.axes), collectives = actions.filter(a => a.axes);
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
    name: 'AB'[at], flags, view, children, sums: summed(view), totals: totals(view),
    at: new Map(view.modules.map((module, at) => [module.path, at])),
  };
});
const two = plans.length === 2;

/** What is looked at: which plans, which module (by path), which part of it. */
const state = { shown: two ? 'both' : 0, detail: 0, module: '', section: 'forward', only: false, closed: new Set(), rows: FIRST_ROWS };
const shownPlans = () => state.shown === 'both' ? plans : [plans[state.shown]];
const detailPlan = () => plans[state.shown === 'both' ? state.detail : state.shown];

/** The modules of all plans in the order of the tree. */
const tree = (() => {
  const found = [], known = new Set();
  const add = (plan, at, depth) => {
    const module = plan.view.modules[at];
    const rows = plan.children[at];
    if (!known.has(module.path)) {
      known.add(module.path);
      found.push({ path: module.path, name: module.name, count: module.count, element: module.element, depth, inner: rows.length > 0,
        parent: module.parent === null ? null : plan.view.modules[module.parent].path });
    }
    rows.forEach(child => add(plan, child, depth + 1));
  };
  plans.forEach(plan => add(plan, 0, 0));
  // A module that only the second plan knows stands with the others of its parent.
  return found.filter(row => row.parent === null).flatMap(function inside(row) {
    return [row, ...found.filter(other => other.parent === row.path).flatMap(inside)];
  });
})();
const title = path => path === '' ? 'the whole model' : path;
const short = path => path === '' ? '(model)' : path;

const hue = axis => `var(--axis${axis % 4})`;
const axisOf = (view, name) => Math.max(0, view.mesh.findIndex(axis => axis.name === name));
const dashes = axis => axis % 2 ? '2.2 1.3' : undefined;

// ---------------------------------------------------------------------------------------------------- values as tensors

/** The dimensions that a drawing has room for, innermost first: those that are cut, then the innermost others. */
function drawnDims(type) {
  const dims = type.dims.map((dim, at) => ({ ...dim, at }));
  const useful = dims.filter(dim => dim.axes.length || dim.size > 1);
  const first = [...useful].sort((a, b) => (b.axes.length > 0) - (a.axes.length > 0) || b.at - a.at).slice(0, 3);
  return first.sort((a, b) => b.at - a.at);
}

/** Where a rank's chunk begins and ends in a dimension, as shares of it: each axis cuts the chunk of the one before. */
function chunk(dim, mesh, coords) {
  let from = 0, length = dim.size;
  for (const axis of dim.axes) {
    const step = Math.ceil(length / mesh[axis].size), start = Math.min(coords[axis] * step, length);
    from += start;
    length = Math.min(step, length - start);
  }
  return dim.size ? [from / dim.size, (from + length) / dim.size] : [0, 0];
}

/** A box as one to three faces: `x0..x1` of its width, `y0..y1` of its height, `z0..z1` of its depth, all shares. */
function box(size, [x0, x1], [y0, y1], [z0, z1], attributes) {
  const at = (x, y, z) => `${px(size.x + x * size.w + z * size.d)},${px(size.y + y * size.h - z * size.d * 0.75)}`;
  const face = (...corners) => s('polygon', { points: corners.join(' '), ...attributes });
  const faces = [face(at(x0, y0, z0), at(x1, y0, z0), at(x1, y1, z0), at(x0, y1, z0))];
  if (size.d > 0) {
    faces.push(face(at(x0, y0, z0), at(x1, y0, z0), at(x1, y0, z1), at(x0, y0, z1)));
    faces.push(face(at(x1, y0, z0), at(x1, y1, z0), at(x1, y1, z1), at(x1, y0, z1)));
  }
  return faces;
}

/** The sizes of a box for a number of dimensions. */
function boxSize(dims, scale, x, y) {
  const [w, h, d] = [[9, 9, 0], [38, 8, 0], [36, 19, 0], [31, 15, 9]][dims];
  return { x, y: y + (d * 0.75 + (22 - h - d * 0.75) / 2) * scale, w: w * scale, h: h * scale, d: d * scale };
}

/** The lines along which axes cut a box, and how many pieces they make in each direction (at most eight are drawn). */
function cuts(size, dims, mesh) {
  const lines = [];
  const line = (from, to, axis) => {
    const at = ([x, y, z]) => [px(size.x + x * size.w + z * size.d), px(size.y + y * size.h - z * size.d * 0.75)];
    const [[x1, y1], [x2, y2]] = [at(from), at(to)];
    lines.push(s('line', { x1, y1, x2, y2, stroke: hue(axis), 'stroke-width': 0.8, 'stroke-dasharray': dashes(axis) }));
  };
  dims.forEach((dim, direction) => {
    let within = 1;
    for (const axis of dim.axes) {
      const pieces = Math.min(mesh[axis].size, within < 1 || direction === 2 ? 4 : 8);
      for (let i = 1; i < pieces; i++) {
        const at = within * i / pieces;
        if (direction === 0) {
          line([at, 0, 0], [at, 1, 0], axis);
          if (size.d) line([at, 0, 0], [at, 0, 1], axis);
        } else if (direction === 1) {
          line([0, at, 0], [1, at, 0], axis);
          if (size.d) line([1, at, 0], [1, at, 1], axis);
        } else {
          line([0, 0, at], [1, 0, at], axis);
          line([1, 0, at], [1, 1, at], axis);
        }
      }
      within /= pieces;
    }
  });
  return lines;
}

/** A value as a tensor: cut along the axes that shard it, with the piece of the first rank filled; a stack for a sum of
    terms; gray if all ranks hold all of it. */
function glyph(view, type) {
  const dims = drawnDims(type), size = boxSize(dims.length, 1, 3, 6);
  const axes = dims.flatMap(dim => dim.axes), terms = type.partial;
  const parts = [];
  if (terms) {
    for (const offset of [5, 2.5]) {
      const behind = { ...size, x: size.x + offset, y: size.y - offset };
      parts.push(...box(behind, [0, 1], [0, 1], [0, 1], { fill: 'var(--paper)', stroke: hue(terms.axes[0]), 'stroke-width': 0.8 }));
    }
  }
  const whole = { stroke: 'var(--faint)', 'stroke-width': 0.7, fill: axes.length || terms ? 'var(--whole)' : 'var(--same)' };
  parts.push(...box(size, [0, 1], [0, 1], [0, 1], whole));
  if (axes.length) {
    // The piece is as large as the cuts that are drawn, at most an eighth in each direction.
    const piece = (dim, at) => dim ? [0, dim.axes.reduce((p, axis, i) => p / Math.min(view.mesh[axis].size, i || at === 2 ? 4 : 8), 1)] : [0, 1];
    const fill = { fill: hue(axes[0]), 'fill-opacity': 0.75 };
    parts.push(...box(size, piece(dims[0], 0), piece(dims[1], 1), piece(dims[2], 2), fill));
    parts.push(...cuts(size, dims, view.mesh));
  }
  if (terms) {
    const sign = terms.op === 'sum' ? 'Σ' : terms.op;
    parts.push(s('text', { x: 57, y: 29, 'text-anchor': 'end', style: { fill: hue(terms.axes[0]), 'font-weight': 700, 'font-size': '10px' } }, sign));
  }
  return s('svg', { class: 'glyph', viewBox: '0 0 58 32', width: 58, height: 32, role: 'img', 'aria-label': type.text }, parts);
}

/** The text of a type, with its axes in their colors. */
function typeText(view, type) {
  const parts = [type.text.slice(0, type.text.indexOf('['))];
  const axes = list => list.length > 1 ? ['(', ...list.flatMap((a, i) => [i ? ',' : '', axisName(view, a)]), ')'] : [axisName(view, list[0])];
  parts.push('[');
  type.dims.forEach((dim, at) => parts.push(at ? ', ' : '', String(dim.size), dim.axes.length ? ['@', ...axes(dim.axes)] : ''));
  parts.push(']');
  if (type.partial) parts.push(` +${type.partial.op}@`, axes(type.partial.axes));
  return parts.flat(3);
}

const axisName = (view, axis) => h('span', { class: 'ax', style: { color: hue(axis) } }, view.mesh[axis].name);

/** The pieces of a value that the ranks hold, as a picture of the mesh, and what each axis does in words. */
function meshDrawing(view, type, caption) {
  const { mesh } = view, dims = drawnDims(type);
  const columns = mesh.length ? mesh[mesh.length - 1].size : 1;
  const rows = mesh.slice(0, -1).reduce((n, axis) => n * axis.size, 1);
  const [w, hgt, left, top] = [46, 31, mesh.length > 1 ? 58 : 4, mesh.length ? 14 : 2];
  const [wide, high] = [Math.min(columns, 8), Math.min(rows, 8)];
  const parts = [];
  for (let r = 0; r < high; r++) {
    const coords = [];
    let rest = r;
    for (let a = mesh.length - 2; a >= 0; a--) { coords[a] = rest % mesh[a].size; rest = Math.floor(rest / mesh[a].size); }
    if (mesh.length > 1) {
      const words = mesh.slice(0, -1).map((axis, a) => `${axis.name}=${coords[a]}`).join(' ');
      parts.push(s('text', { x: left - 8, y: top + r * hgt + 20, 'text-anchor': 'end' }, words));
    }
    for (let c = 0; c < wide; c++) {
      if (mesh.length) coords[mesh.length - 1] = c;
      if (r === 0 && mesh.length) parts.push(s('text', { x: left + c * w + 18, y: 9, 'text-anchor': 'middle' }, `${mesh[mesh.length - 1].name}=${c}`));
      const size = boxSize(dims.length, 0.95, left + c * w, top + r * hgt + 2);
      const share = dim => dim ? chunk(dim, mesh, coords) : [0, 1];
      const [x, y, z] = [share(dims[0]), share(dims[1]), share(dims[2])];
      parts.push(...box(size, [0, 1], [0, 1], [0, 1], { fill: 'var(--whole)', stroke: 'var(--faint)', 'stroke-width': 0.6 }));
      if ([x, y, z].every(([from, to]) => to > from)) {
        const axes = dims.flatMap(dim => dim.axes);
        const fill = axes.length ? hue(axes[0]) : 'var(--same)';
        parts.push(...box(size, x, y, z, { fill, stroke: fill, 'stroke-width': 0.4, 'fill-opacity': 0.8 }));
      }
      if (type.partial) parts.push(s('text', { x: left + c * w + 17, y: top + r * hgt + 20, 'text-anchor': 'middle', class: 'strong' }, `+${subscript(type.partial.axes.map(a => coords[a] ?? 0))}`));
    }
  }
  const says = mesh.map((axis, a) => {
    if (type.partial?.axes.includes(a)) return [axisName(view, a), `: each of ${axis.size} ranks holds one term of the ${type.partial.op}`];
    const at = type.dims.findIndex(dim => dim.axes.includes(a));
    if (at >= 0) return [axisName(view, a), `: dimension ${at} in ${axis.size} pieces`];
    return [axisName(view, a), `: the same on all ${axis.size}`];
  });
  const more = columns > wide || rows > high ? ` The first ${wide * high} of ${columns * rows} ranks are drawn.` : '';
  return h('figure', {},
    h('figcaption', {}, caption, ' ', h('span', { class: 'mono' }, typeText(view, type)), ` · ${bytes(type.bytes)} on the first rank`,
      says.map(parts => [' · ', ...parts]), '.', more),
    s('svg', { width: left + wide * w + 6, height: top + high * hgt + 2, role: 'img', 'aria-label': `the mesh with the pieces of ${type.text}` }, parts));
}
const subscript = numbers => numbers.map(n => String(n).replace(/\d/g, d => '₀₁₂₃₄₅₆₇₈₉'[d])).join(' ');

// ---------------------------------------------------------------------------------------------------------- the header

function renderHeader() {
  document.title = `${page.model} · ${page.plans.map(plan => plan.flags.replace('--plan ', '').replace(' --mesh ', ' on ')).join(' and ')} · tpc view`;
  show('title', page.model);
  show('described', page.described);
  const choice = (label, value) => h('button', {
    role: 'radio', 'aria-checked': String(state.shown === value),
    click: () => { state.shown = value; if (value !== 'both') state.detail = value; render(); },
  }, label);
  show('plans', two
    ? [...plans.map((plan, at) => choice(`${plan.name}  ${plan.flags}`, at)), choice('side by side', 'both')]
    : h('span', { class: 'mono' }, plans[0].flags));
}

function renderTotals() {
  const shown = shownPlans();
  const cell = (what, of, text, note, better = -1) => {
    const values = shown.map(plan => of(plan.totals));
    const one = value => {
      const [number, unit = ''] = text(value).split(' ');
      return h('div', { class: 'number' }, number, h('span', {}, unit));
    };
    const pair = () => h('div', { class: 'pair' }, values.flatMap((value, at) => {
      const other = values[1 - at], worse = better * value < better * other;
      return [h('i', {}, plans[at].name), h('span', { class: worse ? 'off' : '' }, text(value))];
    }));
    return h('div', { class: 'total' }, h('div', { class: 'what' }, what), shown.length > 1 ? pair() : one(values[0]),
      h('div', { class: 'note' }, shown.length > 1 ? change(values[0], values[1], text, better) : note(shown[0].totals)));
  };
  const share = (part, whole) => whole > 0 ? percent(part / whole) : '';
  show('totals',
    cell('step', t => t.step, seconds, t => `${count(page.tokens)} tokens`),
    cell('kernels', t => t.compute, seconds, t => `${count(t.kernels)} of them`),
    cell('waiting', t => t.waiting, seconds, t => `${share(t.waiting, t.step)} of the step`),
    cell('collectives', t => t.flight, seconds, t => `${count(t.collectives)} of them`),
    cell('sent by a rank', t => t.sent, bytes, t => t.ranks === 1 ? 'one rank' : `${count(t.ranks)} ranks`),
    cell('memory of a rank', t => t.memory, bytes, t => t.memory > page.memory ? `${bytes(t.memory - page.memory)} more than it has` : `${share(t.memory, page.memory)} of ${bytes(page.memory)}`),
    cell('tokens per second', t => t.tokens, x => count(Math.round(x)), () => 'all ranks', 1),
    cell('MFU', t => t.mfu, percent, () => 'of the peak of all ranks', 1));
}

// ------------------------------------------------------------------------------------------------------------ the step

const swatch = color => h('span', { class: 'swatch', style: { background: color } });

function renderStep() {
  const width = Math.max(320, byId('step').clientWidth || 1200);
  const longest = Math.max(...shownPlans().map(plan => plan.view.seconds));
  const highest = Math.max(...shownPlans().map(plan => plan.view.arena.bytes));
  show('step', shownPlans().map(plan => stepDrawing(plan, width, longest, highest)));
}

function stepDrawing(plan, width, longest, highest) {
  const { view } = plan, { bins, stretches } = view.execution, { arena } = view;
  const [left, right] = [72, 12], inner = width - left - right;
  const x = at => px(left + (longest > 0 ? at / longest : 0) * inner);
  const parts = [];
  let y = 4;
  const label = (text, at) => parts.push(s('text', { x: left - 8, y: at, 'text-anchor': 'end' }, text));
  // The stretches, so that the eye finds the layers.
  label(two ? `plan ${plan.name}` : 'stretches', y + 12);
  stretches.forEach(stretch => {
    const [from, to] = [x(stretch.start), x(stretch.start + stretch.seconds)], wide = to - from;
    const fill = `var(--kernel${[3, '', 2][PHASES.indexOf(stretch.phase)]})`;
    parts.push(s('rect', { x: from, y, width: Math.max(0.5, wide - 0.7), height: 16, fill, 'fill-opacity': stretch.count > 1 ? 0.55 : 0.25 }));
    const words = `${stretchName(view, stretch)} ${stretch.phase}`;
    const room = Math.floor((wide - 6) / 7.2);
    if (room > 5) parts.push(s('text', { x: from + 4, y: y + 12, class: 'strong' }, words.length > room ? words.slice(0, room - 1) + '…' : words));
  });
  y += 20;
  // How busy kernels and collectives are.
  const area = (values, below, high, color) => {
    const binWidth = view.seconds / values.length;
    const edge = (values, at) => [at, at + 1].map(edge => `${x(edge * binWidth)},${px(y + high - Math.min(1, values[at]) * (high - 2))}`);
    const above = values.map((value, at) => value + below[at]);
    const forth = above.flatMap((_, at) => edge(above, at)), back = below.flatMap((_, at) => edge(below, at)).reverse();
    if (values.some(value => value > 0)) parts.push(s('polygon', { points: [...forth, ...back].join(' '), fill: color }));
    return above;
  };
  const lane = (name, high, draw) => {
    label(name, y + high - 4);
    parts.push(s('line', { x1: left, x2: x(view.seconds), y1: y + high, y2: y + high, stroke: 'var(--line)' }));
    draw(bins.compute.map(() => 0));
    y += high + 6;
  };
  lane('kernels', 20, none => area(bins.compute, none, 20, 'var(--kernel)'));
  lane('collectives', 20, none => bins.communication.reduce((below, shares, axis) => area(shares, below, 20, hue(axis)), none));
  lane('waiting', 14, none => area(bins.waiting, none, 14, 'var(--wait)'));
  y += 18;
  // The arena.
  const high = 150, top = y, most = Math.max(highest, page.memory <= 1.35 * highest ? page.memory : 0);
  const level = amount => px(top + high - (most > 0 ? amount / most : 0) * high);
  let below = arena.moments.map(() => 0);
  arena.kinds.forEach((kind, k) => {
    const above = below.map((base, at) => base + arena.moments[at].bytes[k]);
    if (above.some((value, at) => value > below[at])) {
      const step = view.seconds / arena.moments.length;
      const edge = (values, at) => [`${x(at * step)},${level(values[at])}`, `${x((at + 1) * step)},${level(values[at])}`];
      const forth = above.flatMap((_, at) => edge(above, at)), back = below.flatMap((_, at) => edge(below, at)).reverse();
      parts.push(s('polygon', { points: [...forth, ...back].join(' '), fill: `var(--held${k})` }));
    }
    below = above;
  });
  for (const share of [0, 0.5, 1]) label(bytes(share * most), level(share * most) + (share === 1 ? 9 : share ? 4 : 0));
  const rule = (amount, words, color) => {
    parts.push(s('line', { x1: left, x2: x(view.seconds), y1: level(amount), y2: level(amount), stroke: color, 'stroke-dasharray': '4 3' }));
    parts.push(s('text', { x: x(view.seconds) - 4, y: level(amount) + 12, 'text-anchor': 'end', class: 'strong halo' }, words));
  };
  if (page.memory <= most) rule(page.memory, `a rank has ${bytes(page.memory)}`, 'var(--bad)');
  const full = sum(arena.peak.bytes), peak = x(arena.peak.at);
  parts.push(s('line', { x1: peak, x2: peak, y1: level(full), y2: top + high, stroke: 'var(--ink)', 'stroke-width': 1 }));
  parts.push(s('circle', { cx: peak, cy: level(full), r: 3.5, fill: 'var(--paper)', stroke: 'var(--ink)', 'stroke-width': 1.5 }));
  const leftward = peak > left + inner * 0.6;
  parts.push(s('text', { x: peak + (leftward ? -4 : 4), y: level(full) - 8, 'text-anchor': leftward ? 'end' : 'start', class: 'strong halo' },
    `peak ${bytes(full)} at ${seconds(arena.peak.at)}`));
  y = top + high;
  parts.push(s('line', { x1: left, x2: left + inner, y1: y, y2: y, stroke: 'var(--faint)' }));
  for (const at of ticks(longest, inner / 110)) parts.push(s('text', { x: x(at), y: y + 14, 'text-anchor': at === 0 ? 'start' : 'middle' }, seconds(at)));
  // A pointer reads both.
  const cursor = s('line', { y1: 4, y2: y, stroke: 'var(--ink)', 'stroke-opacity': 0.5, visibility: 'hidden' });
  const hit = s('rect', { x: left, y: 0, width: inner, height: y, fill: 'transparent' });
  const read = (event, at) => {
    if (at < 0 || at > view.seconds) return hide();
    const bin = Math.min(arena.moments.length - 1, Math.floor(at / view.seconds * arena.moments.length));
    const moment = arena.moments[bin], stretch = stretches.findLast(stretch => stretch.start <= at);
    cursor.setAttribute('x1', x(at)); cursor.setAttribute('x2', x(at)); cursor.setAttribute('visibility', 'visible');
    tell(event, h('b', {}, `${seconds(at)} into the step`), stretch && h('div', {}, `${stretchName(view, stretch)}, ${stretch.phase}`),
      h('div', {}, `kernels ${percent(bins.compute[bin] ?? 0)}, collectives ${percent(sum(bins.communication, shares => shares[bin]))}, waiting ${percent(bins.waiting[bin] ?? 0)}`),
      h('table', {}, arena.kinds.map((kind, k) => moment.bytes[k] > 0 && h('tr', {}, h('td', {}, swatch(`var(--held${k})`), ' ', HELD[kind]), h('td', {}, bytes(moment.bytes[k])))).reverse(),
        h('tr', {}, h('td', {}, 'in use'), h('td', {}, h('b', {}, bytes(sum(moment.bytes)))))));
  };
  const hide = () => { cursor.setAttribute('visibility', 'hidden'); quiet(); };
  hit.addEventListener('pointermove', event => read(event, (event.offsetX - left) / inner * longest));
  hit.addEventListener('pointerleave', hide);
  const key = h('div', { class: 'key' }, h('span', {}, h('b', {}, 'arena'), ` ${bytes(arena.bytes)}, at its peak:`),
    arena.kinds.map((kind, k) => arena.peak.bytes[k] > 0 && h('span', {}, swatch(`var(--held${k})`), HELD[kind], ' ', h('b', {}, bytes(arena.peak.bytes[k])))),
    arena.steady_bytes > full && h('span', {}, `gaps ${bytes(arena.steady_bytes - full)}`),
    arena.bytes > arena.steady_bytes && h('span', {}, `the first step takes ${bytes(arena.bytes - arena.steady_bytes)} more`));
  return h('div', {}, s('svg', { height: y + 18, role: 'img', 'aria-label': `the step of plan ${plan.flags}: lanes and arena over ${seconds(view.seconds)}` }, parts, cursor, hit), key);
}

function ticks(end, wanted) {
  if (!(end > 0)) return [0];
  const rough = end / Math.max(2, wanted), unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(n => n * unit).find(n => n >= rough);
  return Array.from({ length: Math.floor(end / step * 0.99) + 1 }, (_, at) => at * step);
}

/** The modules that take most of a stretch, without what is common to all; first how often they repeat. */
function stretchName(view, stretch) {
  // Modules inside an element of a list count for the outermost one.
  const outer = at => {
    let found = at;
    for (let up = at; up !== null; up = view.modules[up].parent) if (view.modules[up].element) found = up;
    return found;
  };
  const times = new Map();
  for (const part of stretch.drawn) if (part.lane !== 1) {
    const at = outer(view.execution.actions[part.action].module);
    times.set(at, (times.get(at) ?? 0) + part.seconds);
  }
  const whole = sum([...times.values()]);
  const names = stretch.count > 1 ? [stretch.module] : [...times].filter(([at, time]) => at === stretch.module || time > 0.15 * whole).sort((a, b) => b[1] - a[1]).map(([at]) => at).slice(0, 3);
  const path = at => {
    const { name, element, parent } = view.modules[at], list = element ? view.modules[parent].name : '';
    return short(list ? `${list}.${name}` : name);
  };
  return (stretch.count > 1 ? `×${stretch.count} ` : '') + (names.length ? names : [stretch.module]).map(path).join(', ');
}

// -------------------------------------------------------------------------------------------------------- the timeline

const LANES = { 0: [40, 26], 1: [70, 26], 2: [40, 26] };
const TIMELINE_HEIGHT = 118;
/** The canvases with what is drawn on them, for pointers and keys. */
let canvases = [];

function renderTimeline() {
  canvases = [];
  const axes = new Map();
  shownPlans().forEach(plan => plan.view.mesh.forEach((axis, at) => axes.set(axis.name, at)));
  const key = h('div', { class: 'key' },
    h('span', {}, swatch('var(--kernel3)'), 'kernels, forward'), h('span', {}, swatch('var(--kernel)'), 'backward'), h('span', {}, swatch('var(--kernel2)'), 'optimizer'),
    [...axes].map(([name, at]) => h('span', {}, swatch(hue(at)), 'collectives along ', h('b', {}, name))),
    h('span', {}, h('span', { class: 'swatch hatch' }), 'waiting for a collective'),
    h('span', {}, h('span', { class: 'swatch', style: { border: '2px solid var(--focus)' } }), 'the selected module'));
  show('timeline', key, shownPlans().map(plan => timelineDrawing(plan)));
  canvases.forEach(paint);
}

/** Where each stretch and each part of it is, in pixels. */
function layout(plan, room) {
  const { stretches } = plan.view.execution;
  const gap = 6, least = 46, left = two ? 20 : 2;
  const free = Math.max(room - left - gap * stretches.length, least * stretches.length);
  const whole = sum(stretches, stretch => stretch.drawn_seconds);
  // Stretches that would be too narrow get the least width; the others share what is left in proportion to their time.
  let narrow = new Set();
  for (let changed = true; changed;) {
    changed = false;
    const rest = free - least * narrow.size, time = sum(stretches.filter((_, at) => !narrow.has(at)), stretch => stretch.drawn_seconds);
    stretches.forEach((stretch, at) => {
      if (!narrow.has(at) && (time <= 0 || stretch.drawn_seconds / time * rest < least)) { narrow.add(at); changed = true; }
    });
  }
  const rest = free - least * narrow.size, time = sum(stretches.filter((_, at) => !narrow.has(at)), stretch => stretch.drawn_seconds);
  let x = left;
  const placed = stretches.map((stretch, at) => {
    const width = narrow.has(at) ? least : stretch.drawn_seconds / time * rest;
    const scale = stretch.drawn_seconds > 0 ? width / stretch.drawn_seconds : 0;
    const parts = stretch.drawn.map(part => {
      const [top, high] = LANES[part.lane];
      return { ...part, stretch: at, x: x + part.at * scale, width: part.seconds * scale, y: top, high };
    });
    const found = { stretch, x, width, parts };
    x += width + gap;
    return found;
  });
  return { placed, width: x, whole };
}

function timelineDrawing(plan) {
  const room = Math.max(320, byId('timeline').clientWidth || 1200);
  const drawing = layout(plan, room);
  const canvas = h('canvas', { tabindex: 0, role: 'img', 'aria-label': `kernels and collectives of plan ${plan.flags}; arrow keys walk through them` });
  canvas.style.width = `${Math.ceil(drawing.width)}px`;
  canvas.style.height = `${TIMELINE_HEIGHT}px`;
  const parts = drawing.placed.flatMap(placed => placed.parts).sort((a, b) => a.x - b.x || a.lane - b.lane);
  const entry = { plan, canvas, drawing, parts, current: -1 };
  canvases.push(entry);
  const find = event => {
    const [x, y] = [event.offsetX, event.offsetY];
    const near = part => y >= part.y && y <= part.y + part.high && x >= part.x - 1.5 && x <= part.x + Math.max(part.width, 1) + 1.5;
    // Of several under the pointer, the smallest.
    return parts.filter(near).sort((a, b) => a.width - b.width)[0];
  };
  canvas.addEventListener('pointermove', event => {
    const part = find(event);
    if (part) tellPart(entry, part, event); else quiet();
  });
  canvas.addEventListener('pointerleave', quiet);
  canvas.addEventListener('click', event => {
    const part = find(event);
    if (part) selectPart(plan, part);
  });
  canvas.addEventListener('keydown', event => {
    const move = { ArrowRight: 1, ArrowLeft: -1, PageDown: 20, PageUp: -20 }[event.key];
    if (move && parts.length) {
      entry.current = Math.max(0, Math.min(parts.length - 1, entry.current + move));
      const part = parts[entry.current], at = canvas.getBoundingClientRect();
      paint(entry);
      tellPart(entry, part, { clientX: at.left + part.x, clientY: at.top + part.y + part.high });
    } else if (event.key === 'Enter' && entry.current >= 0) selectPart(plan, parts[entry.current]);
    else return;
    event.preventDefault();
  });
  canvas.addEventListener('blur', () => { entry.current = -1; quiet(); paint(entry); });
  return canvas;
}

function selectPart(plan, part) {
  const action = plan.view.execution.actions[part.action];
  state.detail = plans.indexOf(plan);
  select(plan.view.modules[action.module].path, action.phase);
}

function tellPart({ plan }, part, event) {
  const { view } = plan, action = view.execution.actions[part.action];
  const what = part.lane === 2 ? `waiting for ${action.label}` : action.label;
  const each = action.count ? action.sent / action.count : 0;
  tell(event, h('b', {}, what, action.axes && ` along ${action.axes.join(', ')}`), ` ${seconds(part.seconds)}`, part.others > 0 && ` with ${part.others} others`,
    h('div', {}, `${title(view.modules[action.module].path)}, ${action.phase}`),
    action.axes && h('div', {}, `sends ${bytes(each)}${action.values > 1 ? ` in ${action.values} values` : ''}; ×${count(action.count)} in the step`),
    action.why && h('div', { class: 'quiet' }, action.why));
}

/** Draws a timeline. Colors come from the style sheet, so they follow the color scheme. */
function paint({ plan, canvas, drawing, parts, current }) {
  const { view } = plan, style = getComputedStyle(document.documentElement);
  const color = name => style.getPropertyValue(name).trim();
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.ceil(drawing.width * density);
  canvas.height = TIMELINE_HEIGHT * density;
  const c = canvas.getContext('2d');
  c.scale(density, density);
  c.font = '11px system-ui, sans-serif';
  const inside = selectedModules(plan);
  if (two) { c.fillStyle = color('--ink'); c.font = '600 12px system-ui, sans-serif'; c.fillText(plan.name, 2, 58); c.font = '11px system-ui, sans-serif'; }
  for (const { stretch, x, width } of drawing.placed) {
    c.fillStyle = color('--ground');
    c.fillRect(x, LANES[0][0] - 2, width, LANES[1][0] + LANES[1][1] + 2 - LANES[0][0] + 2);
    c.save();
    c.beginPath(); c.rect(x, 0, width + 2, TIMELINE_HEIGHT); c.clip();
    c.fillStyle = color('--ink');
    c.fillText(stretchName(view, stretch), x + 1, 13);
    c.fillStyle = color('--soft');
    c.fillText(stretch.phase, x + 1, 28);
    c.fillText(seconds(stretch.drawn_seconds) + (stretch.count > 1 ? ' each' : ''), x + 1, TIMELINE_HEIGHT - 6);
    c.restore();
    c.fillStyle = color(stretch.count > 1 ? '--ink' : '--faint');
    c.fillRect(x, 33, width, stretch.count > 1 ? 2 : 1);
  }
  const kernel = { forward: '--kernel3', backward: '--kernel', optimizer: '--kernel2' };
  for (const part of parts) {
    const action = view.execution.actions[part.action], { x, y, high } = part, width = Math.max(part.width, 0.35);
    if (part.lane === 0) {
      c.fillStyle = color(kernel[action.phase]);
      c.fillRect(x, y, width > 2 ? width - 0.5 : width, high);
    } else if (part.lane === 1) {
      action.axes.forEach((name, at) => {
        c.fillStyle = color(`--axis${axisOf(view, name) % 4}`);
        c.fillRect(x, y + at * high / action.axes.length, width > 2 ? width - 0.5 : width, high / action.axes.length);
      });
    } else {
      c.save();
      c.beginPath(); c.rect(x, y, width, high); c.clip();
      c.strokeStyle = color('--wait'); c.lineWidth = 1; c.globalAlpha = 0.75;
      c.beginPath();
      for (let line = x - high; line < x + width; line += 4) { c.moveTo(line, y + high); c.lineTo(line + high, y); }
      c.stroke();
      c.restore();
    }
    if (inside.has(action.module) && part.lane !== 2 && width > 1) {
      c.strokeStyle = color('--focus'); c.lineWidth = 1.5;
      c.strokeRect(x + 0.75, y + 0.75, Math.max(0.5, width - 2), high - 1.5);
    }
  }
  if (current >= 0) {
    const { x, y, width, high } = parts[current];
    c.strokeStyle = color('--ink'); c.lineWidth = 2;
    c.strokeRect(x - 1, y - 1, Math.max(3, width + 2), high + 2);
  }
}

/** The positions of the selected module and of all in it; none for the whole model. */
function selectedModules(plan) {
  const found = new Set(), at = plan.at.get(state.module);
  if (at) (function add(at) { found.add(at); plan.children[at].forEach(add); })(at);
  return found;
}

// ---------------------------------------------------------------------------------------------------------- the modules

function renderModules() {
  const shown = shownPlans(), pair = shown.length > 1;
  const root = shown.map(plan => plan.sums.all[0]);
  const most = cost => Math.max(...shown.map(plan => sum(plan.sums.all[0][cost])));
  const heldMost = Math.max(...root.map(all => all.held));
  const of = (plan, path) => plan.sums.all[plan.at.get(path)];
  const cell = (amount, whole, text, fill, rule) => h('td', {
    class: `${amount === 0 ? 'zero' : ''}${rule ? ' rule' : ''}`,
    style: { '--share': whole > 0 ? Math.min(1, amount / whole).toFixed(4) : 0, '--fill': fill },
  }, amount === 0 ? '·' : text(amount));
  const tint = (color, part) => `color-mix(in srgb, ${color} ${part}%, transparent)`;
  const fills = { compute: tint('var(--kernel)', 28), waiting: tint('var(--wait)', 16), sent: tint('var(--axis1)', 22), held: tint('var(--held1)', 28) };
  const cells = path => {
    if (pair) {
      const groups = [['compute', seconds], ['waiting', seconds], ['sent', bytes]];
      return [...groups.flatMap(([cost, text]) => shown.map((plan, at) => cell(sum(of(plan, path)?.[cost] ?? [0]), most(cost), text, fills[cost], at === 0))),
        ...shown.map((plan, at) => cell(of(plan, path)?.held ?? 0, heldMost, bytes, fills.held, at === 0))];
    }
    const all = of(shown[0], path);
    if (!all) return [];
    return [...all.compute.map((x, p) => cell(x, most('compute'), seconds, fills.compute, p === 0)), cell(sum(all.waiting), most('waiting'), seconds, fills.waiting, true),
      ...all.sent.map((x, p) => cell(x, most('sent'), bytes, fills.sent, p === 0)), cell(all.held, heldMost, bytes, fills.held, true)];
  };
  const head = pair
    ? [h('tr', {}, h('th', {}), [['kernels', 2], ['waiting', 2], ['sent', 2], ['memory at the peak', 2]].map(([words, span]) => h('th', { class: 'group rule', colspan: span, scope: 'colgroup' }, words))),
      h('tr', {}, h('th', { class: 'text', scope: 'col' }, 'module'), [0, 1, 2, 3].flatMap(() => ['A', 'B'].map((name, at) => h('th', { class: at ? '' : 'rule', scope: 'col' }, name))))]
    : [h('tr', {}, h('th', {}), [['kernels', 3], ['waiting', 1], ['sent', 3], ['memory', 1]].map(([words, span]) => h('th', { class: 'group rule', colspan: span, scope: 'colgroup' }, words))),
      h('tr', {}, h('th', { class: 'text', scope: 'col' }, 'module'), ['forward', 'backward', 'optimizer', '', 'forward', 'backward', 'optimizer', 'at the peak'].map((name, at) => h('th', { class: [0, 3, 4, 7].includes(at) ? 'rule' : '', scope: 'col' }, name)))];
  const visible = tree.filter(row => shown.some(plan => plan.at.has(row.path)) && ![...above(row)].some(path => state.closed.has(path)));
  const rows = visible.map(row => h('tr', {
    class: row.path === state.module ? 'chosen' : '', tabindex: row.path === state.module ? 0 : -1, 'data-path': row.path, role: 'row',
    'aria-level': row.depth + 1, 'aria-selected': String(row.path === state.module), 'aria-expanded': row.inner ? String(!state.closed.has(row.path)) : undefined,
    click: event => { if (event.target.classList.contains('fold')) toggle(row); else select(row.path); },
  }, h('td', { class: 'text name mono', style: { '--depth': row.depth }, title: title(row.path) },
    h('span', { class: 'fold' }, row.inner ? (state.closed.has(row.path) ? '▶' : '▼') : ''), row.name || '(model)',
    row.element && row.count > 1 && h('span', { class: 'times' }, `×${row.count}`)), cells(row.path)));
  show('modules', h('div', { class: 'scroll' }, h('table', { role: 'treegrid', 'aria-label': 'Modules', keydown: event => treeKey(event, visible) }, h('thead', {}, head), h('tbody', {}, rows))));
}

const rowOf = path => tree.find(row => row.path === path);
function* above(row) {
  for (let parent = row.parent; parent !== null; parent = rowOf(parent).parent) yield parent;
}

function toggle(row) {
  if (!state.closed.delete(row.path)) state.closed.add(row.path);
  renderModules();
}

function treeKey(event, visible) {
  const at = visible.findIndex(row => row.path === state.module), row = visible[at];
  const to = path => { select(path); byId('modules').querySelector('tr.chosen')?.focus(); };
  if (event.key === 'ArrowDown' && visible[at + 1]) to(visible[at + 1].path);
  else if (event.key === 'ArrowUp' && visible[at - 1]) to(visible[at - 1].path);
  else if (event.key === 'ArrowLeft' && row) { if (row.inner && !state.closed.has(row.path)) toggle(row); else if (row.parent !== null) to(row.parent); }
  else if (event.key === 'ArrowRight' && row?.inner) { if (state.closed.has(row.path)) toggle(row); else if (visible[at + 1]) to(visible[at + 1].path); }
  else return;
  byId('modules').querySelector('tr.chosen')?.focus();
  event.preventDefault();
}

function select(path, section) {
  state.module = path;
  if (section) state.section = section;
  state.rows = FIRST_ROWS;
  renderModules();
  renderDetail();
  canvases.forEach(paint);
}

// ------------------------------------------------------------------------------------------------------ one module

/** The listings of a module and of all in it: of each module the one that stands for most, and the others. */
function listings(plan, path, section) {
  const at = plan.at.get(path);
  if (at === undefined) return { main: [], others: [] };
  const inside = new Set();
  (function add(at) { inside.add(at); plan.children[at].forEach(add); })(at);
  const best = new Map(), others = [];
  for (const listing of plan.view.listings) {
    if (listing.section !== section || !inside.has(listing.module)) continue;
    const known = best.get(listing.module);
    if (!known || listing.count > known.count) {
      if (known) others.push(known);
      best.set(listing.module, listing);
    } else others.push(listing);
  }
  return { main: [...best.values()], others };
}

const SECTIONS = [['inputs', 'owns'], ['forward', 'forward'], ['backward', 'backward'], ['optimizer', 'optimizer'], ['costs', 'time and memory']];

function renderDetail() {
  const plan = detailPlan(), { view } = plan, at = plan.at.get(state.module);
  const row = rowOf(state.module);
  show('module-title', title(state.module), row.count > 1 && h('small', {}, `stands for ${row.count} equal modules`));
  const sizes = Object.fromEntries(SECTIONS.slice(0, 4).map(([section]) => [section, sum(listings(plan, state.module, section).main, listing => listing.operations.length)]));
  if (state.section !== 'costs' && !sizes[state.section]) state.section = SECTIONS.map(([section]) => section).find(section => sizes[section]) ?? 'costs';
  const tab = ([section, words]) => h('button', {
    role: 'tab', 'aria-selected': String(state.section === section), disabled: section !== 'costs' && !sizes[section],
    click: () => { state.section = section; state.rows = FIRST_ROWS; renderDetail(); },
  }, words, section !== 'costs' && h('span', { class: 'quiet' }, ` ${sizes[section]}`));
  const tabs = h('div', { class: 'bar', role: 'tablist' }, SECTIONS.map(tab),
    state.section !== 'costs' && state.section !== 'inputs' && h('label', { class: 'quiet' }, h('input', { type: 'checkbox', checked: state.only, change: event => { state.only = event.target.checked; renderDetail(); } }), ' collectives only'),
    state.shown === 'both' && h('span', { class: 'bar', role: 'radiogroup', 'aria-label': 'Plan of the operations' }, plans.map((other, i) => h('button', {
      role: 'radio', 'aria-checked': String(state.detail === i), click: () => { state.detail = i; renderDetail(); },
    }, `plan ${other.name}`))));
  if (at === undefined) return show('module', tabs, h('p', { class: 'quiet' }, 'The program of this plan has no such module.'));
  show('module', tabs, state.section === 'costs' ? costsTable(plan, at) : operations(plan, view));
}

function operations(plan, view) {
  const { main, others } = listings(plan, state.module, state.section);
  const lines = list => list.flatMap(listing => listing.operations.map(operation => ({ operation, listing })))
    .filter(({ operation }) => !state.only || operation.sent).sort((a, b) => a.operation.name - b.operation.name);
  const all = lines(main), cut = all.slice(0, state.rows);
  const shown = [...new Set(main.map(listing => listing.shown))];
  const like = main.reduce((most, listing) => Math.max(most, listing.count), 0);
  const words = like > 1 ? `as in ${title(shown[0])}; the step has these ${like} times` : '';
  return [
    key(view),
    words && h('p', { class: 'quiet' }, words),
    h('div', { class: 'ops', keydown: opsKey }, cut.map(({ operation, listing }, at) => opRow(view, operation, listing, at === 0))),
    all.length === 0 && h('p', { class: 'quiet' }, 'No collectives here.'),
    all.length > cut.length && h('button', { click: () => { state.rows = Math.min(all.length, state.rows + 480); renderDetail(); } }, `show more of the ${all.length} operations`),
    others.length > 0 && h('details', {}, h('summary', {}, `${others.length} variant${others.length > 1 ? 's' : ''}: modules of the same kind whose operations or placements differ`),
      others.map(listing => {
        const body = h('div', { class: 'ops', keydown: opsKey });
        const fill = () => body.childElementCount || body.append(...lines([listing]).slice(0, FIRST_ROWS).map(({ operation }, at) => opRow(view, operation, listing, at === 0)));
        return h('details', { toggle: event => event.target.open && fill() }, h('summary', {}, `${short(listing.shown)} ×${listing.count}, ${listing.operations.length} operations`), body);
      })),
  ];
}

/** What the drawings of values mean. */
function key(view) {
  const find = fits => [2, 3, 1].map(dims => view.types.find(type => drawnDims(type).length === dims && fits(type))).find(Boolean);
  const isCut = type => type.dims.some(dim => dim.axes.length);
  const some = find(type => !type.partial && isCut(type)), same = find(type => !type.partial && !isCut(type)), terms = find(type => type.partial?.op === 'sum');
  const one = (type, words) => type && h('span', {}, glyph(view, type), words);
  return h('div', { class: 'key' }, one(some, 'cut; the piece of the first rank is filled'), one(same, 'whole on every rank'), one(terms, 'terms of a sum, one on each rank'),
    view.mesh.map((axis, at) => h('span', {}, swatch(hue(at)), h('b', {}, axis.name), `=${axis.size}`)));
}

function opRow(view, operation, listing, first) {
  const type = view.types[operation.types[0]], from = operation.operands[0];
  const moves = !operation.sent && operation.why && listing.section !== 'inputs';
  const row = h('div', {
    class: `op${operation.sent ? ' sends' : moves ? ' moves' : ''}`, tabindex: first ? 0 : -1, role: 'button', 'aria-expanded': 'false',
    style: operation.sent ? { '--hue': hue(operation.sent.axes[0]) } : {},
    click: event => { if (!event.target.closest('.more')) open(row); },
  });
  const open = () => {
    const known = row.querySelector('.more');
    row.classList.toggle('open', !known);
    row.setAttribute('aria-expanded', String(!known));
    if (known) return known.remove();
    row.append(h('div', { class: 'more' }, h('div', { class: 'meshes' },
      operation.sent && meshDrawing(view, view.types[from.ty], `before, ${from.name}:`),
      operation.types.map((ty, at) => meshDrawing(view, view.types[ty], operation.sent ? `after, %${operation.name}:` : `%${operation.name}${operation.types.length > 1 ? `.${at}` : ''}:`)))));
  };
  const operands = operation.operands.map(operand => operand.name).join(', ');
  const picture = operation.sent
    ? h('span', { class: 'arrow' }, glyph(view, view.types[from.ty]), '→', glyph(view, type))
    : glyph(view, type);
  row.append(h('span', { class: 'n' }, `%${operation.name}`, operation.times > 1 && h('div', { class: 'times', title: 'repeats in the module, with the operations around it' }, `×${operation.times}`)), picture, h('div', { class: 'what' },
    operation.sent
      ? [h('b', { class: 'mono' }, operation.text), ` ${operands} `, h('span', {}, `sends ${bytes(operation.sent.bytes)}`)]
      : h('span', { class: 'mono' }, operation.text, operands && ` ${operands}`),
    h('div', { class: 'type' }, operation.types.map((ty, at) => [at ? ', ' : '', typeText(view, view.types[ty])])),
    operation.why && h('div', { class: 'why' }, operation.why)));
  return row;
}

function opsKey(event) {
  const row = event.target.closest('.op');
  const move = { ArrowDown: 'nextElementSibling', ArrowUp: 'previousElementSibling' }[event.key];
  if (!row) return;
  if (move && row[move]) { row.setAttribute('tabindex', -1); row[move].setAttribute('tabindex', 0); row[move].focus(); }
  else if (event.key === 'Enter' || event.key === ' ') row.click();
  else return;
  event.preventDefault();
}

/** The kernels and collectives of a module and of all in it, those that take most of the step first. */
function costsTable(plan, at) {
  const { view } = plan, inside = new Set();
  (function add(at) { inside.add(at); plan.children[at].forEach(add); })(at);
  const actions = view.execution.actions.filter(action => inside.has(action.module)).sort((a, b) => b.of_step - a.of_step || b.sent - a.sent);
  const inner = action => action.module === at ? '' : view.modules[action.module].path;
  const row = action => [h('tr', { class: action.why || inner(action) ? 'joined' : '' },
    h('td', { class: 'text mono' }, action.axes ? h('span', { style: { color: hue(axisOf(view, action.axes[0])) } }, h('b', {}, action.label), ` ${action.axes.join(',')}`) : action.label),
    h('td', { class: 'text' }, action.phase), h('td', {}, count(action.count)), h('td', {}, action.axes ? bytes(action.sent) : ''),
    h('td', {}, seconds(action.seconds)), h('td', {}, percent(view.seconds > 0 ? action.of_step / view.seconds : 0))),
  (action.why || inner(action)) && h('tr', {}, h('td', { class: 'text wrap quiet', colspan: 6 }, inner(action) && h('div', { class: 'mono' }, inner(action)), action.why))];
  const cut = actions.slice(0, state.rows);
  return [h('div', { class: 'scroll' }, h('table', {},
    h('thead', {}, h('tr', {}, [['what', 'text'], ['phase', 'text'], ['count', ''], ['sent', ''], ['time', ''], ['of the step', '']].map(([words, kind]) => h('th', { class: kind, scope: 'col' }, words)))),
    h('tbody', {}, cut.map(row)))),
  actions.length > cut.length && h('button', { click: () => { state.rows += 480; renderDetail(); } }, `show more of the ${actions.length} rows`),
  heldTable(plan, inside)];
}

/** What modules hold when the arena is fullest. */
function heldTable({ view }, inside) {
  const held = new Map();
  for (const { module, content, bytes } of view.arena.holdings) if (inside.has(module)) held.set(content, (held.get(content) ?? 0) + bytes);
  const rows = [...held].sort((a, b) => b[1] - a[1]).map(([content, amount]) => h('tr', {}, h('td', { class: 'text' }, content), h('td', {}, bytes(amount)), h('td', {}, percent(amount / view.arena.bytes))));
  return rows.length > 0 && [h('h3', {}, 'In the arena when it is fullest'), h('table', { style: { width: 'auto' } }, h('tbody', {}, rows))];
}

// ------------------------------------------------------------------------------------------------- two plans side by side

/** What each plan has by module, phase and work, where they differ. */
function differences() {
  const rows = new Map();
  plans.forEach((plan, which) => plan.view.execution.actions.forEach(action => {
    const work = action.axes ? `${action.label} ${action.axes.join(',')}` : 'kernels', path = plan.view.modules[action.module].path;
    const key = JSON.stringify([path, action.phase, work]);
    if (!rows.has(key)) rows.set(key, { path, phase: action.phase, work, axes: action.axes, plans: [0, 1].map(() => ({ count: 0, sent: 0, seconds: 0, of_step: 0 })) });
    const into = rows.get(key).plans[which];
    for (const part of ['count', 'sent', 'seconds', 'of_step']) into[part] += action[part];
  }));
  const near = (a, b) => Math.abs(a - b) <= 1e-9 * Math.max(Math.abs(a), Math.abs(b));
  const differs = ({ plans: [a, b] }) => !['count', 'sent', 'seconds', 'of_step'].every(part => near(a[part], b[part]));
  const by = part => ({ plans: [a, b] }) => Math.abs(b[part] - a[part]);
  return [...rows.values()].filter(differs).sort((x, y) => by('of_step')(y) - by('of_step')(x) || by('sent')(y) - by('sent')(x));
}

/** What the arena holds at its peak by module and content, where the plans differ. */
function heldDifferences() {
  const rows = new Map();
  plans.forEach((plan, which) => plan.view.arena.holdings.forEach(holding => {
    const path = plan.view.modules[holding.module].path, key = JSON.stringify([path, holding.content]);
    if (!rows.has(key)) rows.set(key, { path, content: holding.content, plans: [0, 0] });
    rows.get(key).plans[which] += holding.bytes;
  }));
  return [...rows.values()].filter(({ plans: [a, b] }) => a !== b).sort((x, y) => Math.abs(y.plans[1] - y.plans[0]) - Math.abs(x.plans[1] - x.plans[0]));
}

let changesShown = 30;
function renderChanges() {
  byId('changes-section').hidden = !two;
  if (!two) return;
  const both = ([a, b], text) => text(a) === text(b) ? text(a) : `${text(a)} → ${text(b)}`;
  const goto = path => ({ tabindex: 0, click: () => select(path), keydown: event => { if (event.key === 'Enter') select(path); } });
  const parts = differences(), held = heldDifferences();
  const of = (row, part) => row.plans.map(plan => plan[part]);
  const head = list => h('thead', {}, h('tr', {}, list.map(([words, kind]) => h('th', { class: kind, scope: 'col' }, words))));
  const row = row => h('tr', goto(row.path), h('td', { class: 'text mono' }, short(row.path)), h('td', { class: 'text' }, row.phase),
    h('td', { class: 'text mono' }, row.work), h('td', {}, both(of(row, 'count'), count)), h('td', {}, row.axes ? both(of(row, 'sent'), bytes) : ''),
    h('td', {}, both(of(row, 'seconds'), seconds)), h('td', {}, change(...of(row, 'of_step'), seconds)));
  const heldRow = row => h('tr', goto(row.path), h('td', { class: 'text mono' }, short(row.path)), h('td', { class: 'text' }, row.content), h('td', {}, both(row.plans, bytes)), h('td', {}, change(...row.plans, bytes)));
  const more = Math.max(parts.length, held.length) > changesShown;
  show('changes', parts.length + held.length === 0 && h('p', { class: 'quiet' }, 'Nothing differs.'), h('div', { class: 'changes' },
    parts.length > 0 && h('div', { class: 'scroll' }, h('table', {}, head([['module', 'text'], ['phase', 'text'], ['work', 'text'], ['count', ''], ['sent', ''], ['time', ''], ['adds to the step', '']]), h('tbody', {}, parts.slice(0, changesShown).map(row)))),
    held.length > 0 && h('div', { class: 'scroll' }, h('table', {}, head([['module', 'text'], ['at the peak of memory', 'text'], ['bytes', ''], ['change', '']]), h('tbody', {}, held.slice(0, changesShown).map(heldRow))))),
  more && h('button', { click: () => { changesShown += 300; renderChanges(); } }, `show more of ${parts.length} and ${held.length} rows`));
}

// ---------------------------------------------------------------------------------------------------------- the search

function renderSearch() {
  show('search', h('div', { class: 'two' }, shownPlans().map(plan => {
    const { search } = plan.view, { planner } = search, before = planner ? planner.before : search.before;
    const fact = (words, ...value) => h('tr', {}, h('td', { class: 'text' }, words), h('td', { class: 'text wrap' }, value));
    const gained = before > 0 ? percent(Math.abs(1 - search.after / before)) : percent(0);
    const saved = gained === percent(0) ? ', unchanged' : ` (${search.after <= before ? '−' : '+'}${gained})`;
    const facts = h('table', {}, h('tbody', {},
      fact('cost', `${seconds(before)} → `, h('b', {}, seconds(search.after)), saved),
      planner && fact('placements', planner.taken ? `planned: ${seconds(planner.before)} → ${seconds(planner.after)}` : 'the planner found none that cost less'),
      planner && fact('lower bound', planner.bound === null ? 'not known for a mesh of more than two axes'
        : `${seconds(planner.bound)}; other placements could be at most ${(Math.max(1, Math.ceil(1e4 * planner.gap)) / 100).toFixed(2)}% cheaper`),
      !planner && fact('lower bound', 'none: the plan gives the placements; --placements planned chooses them, with a bound'),
      fact('stopped', search.unfinished ? `after ${search.unfinished}: it might find more` : `${search.stop}, ${search.extraction}: nothing more was found`),
      fact('searched', `${count(search.nodes)} e-nodes in ${search.rounds} round${search.rounds === 1 ? '' : 's'}, ${count(search.applications)} application${search.applications === 1 ? '' : 's'} of rules`),
      search.declined !== null && fact('declined', `a program of ${seconds(search.declined)}, slower than what came in`),
      search.blocks.length > 0 && fact('blocks', search.blocks.map(([path, times]) => `${path || 'block'} ×${times}`).join(', '), ', each searched once'),
      planner && planner.steps.length > 0 && fact('planned along', planner.steps.map(step => `${step.axes.join(' and ')}: ${count(step.states)} states, ${seconds(step.seconds)}, at least ${seconds(step.bound)}`).join('; '))));
    const table = rules => h('table', {}, h('thead', {}, h('tr', {}, [['rule', ''], ['what it states', 'text'], ['applied', ''], ['operations due to it', '']].map(([words, kind]) => h('th', { class: kind, scope: 'col' }, words)))),
      h('tbody', {}, rules.map(rule => h('tr', {}, h('td', {}, String(rule.rule)),
        h('td', { class: 'text wrap' }, h('b', {}, rule.name), !rule.exact && h('span', { class: 'quiet' }, ' · sums in another order'), h('div', { class: 'quiet' }, rule.equality)),
        h('td', {}, count(rule.applied)), h('td', { class: rule.paid ? '' : 'zero' }, rule.paid ? h('b', {}, count(rule.paid)) : '·')))));
    const sorted = [...search.rules].sort((a, b) => b.paid - a.paid || b.applied - a.applied);
    const paid = sorted.filter(rule => rule.paid), idle = sorted.filter(rule => !rule.paid);
    return h('div', {}, two && h('h3', {}, `plan ${plan.name}: `, h('span', { class: 'mono' }, plan.flags)), facts, paid.length > 0 && table(paid),
      idle.length > 0 && h('details', {}, h('summary', {}, `${idle.length} ${paid.length ? 'other ' : ''}rule${idle.length > 1 ? 's' : ''} applied, with nothing of ${idle.length > 1 ? 'them' : 'it'} in the result`), table(idle)),
      sorted.length === 0 && h('p', { class: 'quiet' }, 'No rule was applied.'));
  })));
}

// ------------------------------------------------------------------------------------------------------------ the tip

function tell(event, ...children) {
  const tip = byId('tip');
  tip.replaceChildren(...children.flat(3).filter(Boolean));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, window.innerWidth - width - 8))}px`;
  tip.style.top = `${event.clientY + 18 + height > window.innerHeight ? Math.max(4, event.clientY - height - 12) : event.clientY + 18}px`;
}
const quiet = () => { byId('tip').hidden = true; };

// ------------------------------------------------------------------------------------------------------- the whole page

function render() {
  quiet();
  renderHeader();
  renderTotals();
  renderStep();
  renderTimeline();
  renderModules();
  renderDetail();
  renderChanges();
  renderSearch();
}

/** The module that the page begins with: the one that takes most of the step by itself. */
function busiest() {
  const [{ view, sums }] = plans, cost = at => sum(sums.own[at].compute) + sum(sums.own[at].waiting);
  const best = view.modules.map((_, at) => at).slice(1).reduce((best, at) => cost(at) > cost(best) ? at : best, 0);
  return view.modules[best].path;
}

/** Modules in which nothing runs are closed at first: their operations belong to the module around them. */
function closeIdle() {
  for (const row of tree.filter(row => row.inner)) {
    const runs = plan => tree.some(inner => inner.parent === row.path && plan.at.has(inner.path) && COSTS.some(cost => sum(plan.sums.all[plan.at.get(inner.path)][cost]) > 0));
    if (!plans.some(runs)) state.closed.add(row.path);
  }
}

state.module = busiest();
closeIdle();
render();
document.documentElement.dataset.ready = px(performance.now() - started);
let resizing = 0;
window.addEventListener('resize', () => { cancelAnimationFrame(resizing); resizing = requestAnimationFrame(() => { renderStep(); renderTimeline(); }); });
window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => canvases.forEach(paint));

// ---------------------------------------------------------------------------------------------------- the page checks itself

function selfCheck() {
  const failures = [];
  let checks = 0;
  const check = (holds, words) => { checks += 1; if (!holds) failures.push(words); };
  const near = (a, b, words) => check(Math.abs(a - b) <= 1e-6 * Math.max(Math.abs(a), Math.abs(b), 1e-12), `${words}: ${a} and ${b}`);
  const elements = () => document.querySelectorAll('*').length;
  const clean = where => {
    const wrong = /NaN|undefined|Infinity|\[object|null/.exec([...document.querySelectorAll('header, main')].map(part => part.innerHTML).join('').replace(/aria-label="[^"]*"|title="[^"]*"|data-path="[^"]*"/g, ''));
    // A module may be called so.
    const named = JSON.stringify(page);
    check(!wrong || wrong[0] !== '[object' && named.includes(wrong[0]) && !/NaN|undefined/.test(wrong[0]), `${where}: the page says ${wrong?.[0]}`);
    check(elements() < MOST_ELEMENTS, `${where}: ${elements()} elements`);
  };
  for (const plan of plans) {
    const { view, sums, totals } = plan, of = `plan ${plan.name}`, { execution, arena } = view;
    // Modules add up to the whole.
    near(sum(sums.all[0].compute) + sum(sums.all[0].waiting), view.seconds, `${of}: seconds of all modules and of the step`);
    near(sum(sums.all[0].sent), totals.sent, `${of}: bytes sent by modules and in all`);
    check(sums.all[0].held === arena.bytes, `${of}: bytes held by modules (${sums.all[0].held}) and the arena (${arena.bytes})`);
    near(sum(execution.actions.filter(a => !a.axes), a => a.seconds), execution.busy.compute, `${of}: seconds of kernels`);
    near(sum(execution.actions.filter(a => a.axes), a => a.seconds), execution.busy.communication, `${of}: seconds of collectives`);
    // Stretches cover the step, and their lanes add up.
    near(sum(execution.stretches, stretch => stretch.seconds), view.seconds, `${of}: seconds of stretches and of the step`);
    for (const lane of ['compute', 'communication', 'waiting']) {
      near(sum(execution.stretches, stretch => stretch.busy[lane]), execution.busy[lane], `${of}: ${lane} of stretches`);
      check(execution.bins[lane].flat().every(share => share >= 0 && share <= 1.001), `${of}: shares of ${lane}`);
    }
    check(execution.stretches.every(stretch => stretch.drawn.every(part => part.at >= 0 && part.at + part.seconds <= stretch.drawn_seconds * 1.0001)), `${of}: a part is outside its stretch`);
    // No moment is fuller than the peak, and the peak is among the moments.
    const fullest = Math.max(...arena.moments.map(moment => sum(moment.bytes)));
    check(fullest === sum(arena.peak.bytes), `${of}: the fullest moment (${fullest}) and the peak (${sum(arena.peak.bytes)})`);
    check(sum(arena.peak.bytes) <= arena.steady_bytes && arena.steady_bytes <= arena.bytes, `${of}: the peak does not fit into the arena`);
    // Every value can be drawn, and its drawing says how it is placed.
    for (const type of view.types) {
      const drawing = glyph(view, type), lines = drawing.querySelectorAll('line').length;
      const isCut = type.dims.some(dim => dim.axes.some(axis => view.mesh[axis].size > 1));
      check(drawing.childElementCount > 0 && !/NaN|undefined/.test(drawing.outerHTML), `${of}: ${type.text} is not drawn`);
      check(isCut === lines > 0, `${of}: ${type.text} has ${lines} cuts`);
      check((type.partial !== null) === (drawing.querySelector('text') !== null), `${of}: ${type.text}: terms`);
      check(typeText(view, type).map(part => typeof part === 'string' ? part : part.textContent).join('') === type.text, `${of}: ${type.text} is written differently`);
    }
    check(view.listings.every(listing => listing.operations.every(operation => operation.types.every(ty => view.types[ty]) && operation.operands.every(operand => view.types[operand.ty]))), `${of}: a type is missing`);
    check(view.modules.every((module, at) => at === 0 ? module.parent === null : module.parent < at), `${of}: the tree of modules`);
  }
  if (two) {
    const [a, b] = plans, parts = differences(), held = heldDifferences();
    const of = (part, rows) => sum(rows, ({ plans: [x, y] }) => y[part] - x[part]);
    const scale = Math.max(a.totals.step, b.totals.step);
    check(Math.abs(of('of_step', parts) - (b.totals.compute + b.totals.waiting - a.totals.compute - a.totals.waiting)) <= 1e-6 * scale, 'differences of the step');
    check(Math.abs(of('sent', parts) - (b.totals.sent - a.totals.sent)) <= 1e-6 * Math.max(a.totals.sent, b.totals.sent), 'differences of bytes');
    check(sum(held, ({ plans: [x, y] }) => y - x) === b.totals.memory - a.totals.memory, 'differences of memory');
    check(byId('plans').querySelectorAll('button').length === 3, 'both plans can be chosen');
  }
  check(document.title.includes('tpc view'), 'the title');
  check(document.querySelectorAll('script').length === 2 && document.querySelectorAll('link, img, iframe').length === 0, 'a foreign element');
  // Every selection can be shown.
  let most = 0;
  const before = { ...state };
  for (const shown of two ? [0, 1, 'both'] : [0]) {
    state.shown = shown;
    state.detail = shown === 'both' ? 0 : shown;
    render();
    clean(`plans ${shown}`);
    check(byId('timeline').querySelectorAll('canvas').length === shownPlans().length && byId('step').querySelectorAll('svg').length === shownPlans().length, 'each plan has its step');
    for (const { path } of tree) for (const [section] of SECTIONS) {
      state.section = section;
      select(path);
      most = Math.max(most, elements());
      clean(`${path}, ${section}`);
      const rows = [...byId('module').querySelectorAll('.op')];
      check(rows.every(row => row.querySelector('.glyph')), `${path}, ${section}: a value is not drawn`);
      new Set([rows.find(row => row.classList.contains('sends')), rows[0]]).forEach(row => row?.click());
      check(rows.length === 0 || byId('module').querySelector('.more svg') !== null, `${path}, ${section}: a value is not drawn on the mesh`);
    }
  }
  Object.assign(state, before);
  render();
  for (const entry of canvases) {
    entry.canvas.focus();
    entry.canvas.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight' }));
    check(entry.parts.length === 0 || !byId('tip').hidden, 'the keyboard reaches the timeline');
    entry.canvas.blur();
  }
  const said = failures.length ? `failed: ${failures.length} of ${checks} checks\n${failures.slice(0, 40).join('\n')}` : `passed: ${checks} checks`;
  const result = h('div', { id: 'self-check', 'data-checks': checks, 'data-failures': failures.length, 'data-elements': most, 'data-ready': document.documentElement.dataset.ready }, said);
  document.body.append(result);
}

if (location.hash === '#test') {
  try {
    selfCheck();
  } catch (error) {
    document.body.append(h('div', { id: 'self-check', 'data-failures': 1 }, `failed: ${error.stack}`));
  }
}
