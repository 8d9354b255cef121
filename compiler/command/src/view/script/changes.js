// Where two plans differ.
/** What each plan has by module, phase and work, where they differ. */
function differences() {
  const rows = new Map();
  plans.forEach((plan, which) =>
    plan.view.execution.actions.forEach(action => {
      const work = action.axes ? `${action.label} ${action.axes.join(',')}` : 'kernels',
        path = plan.view.modules[action.module].path;
      const key = JSON.stringify([path, action.phase, work]);
      if (!rows.has(key))
        rows.set(key, {
          path,
          phase: action.phase,
          work,
          axes: action.axes,
          plans: [0, 1].map(() => ({ count: 0, sent: 0, seconds: 0, of_step: 0 })),
        });
      const into = rows.get(key).plans[which];
      for (const part of ['count', 'sent', 'seconds', 'of_step']) into[part] += action[part];
    }),
  );
  const near = (a, b) => Math.abs(a - b) <= 1e-9 * Math.max(Math.abs(a), Math.abs(b));
  const differs = ({ plans: [a, b] }) => !['count', 'sent', 'seconds', 'of_step'].every(part => near(a[part], b[part]));
  const by =
    part =>
    ({ plans: [a, b] }) =>
      Math.abs(b[part] - a[part]);
  return [...rows.values()]
    .filter(differs)
    .sort((x, y) => by('of_step')(y) - by('of_step')(x) || by('sent')(y) - by('sent')(x));
}

/** What the arena holds at its peak by module and content, where the plans differ. */
function heldDifferences() {
  const rows = new Map();
  plans.forEach((plan, which) =>
    plan.view.arena.holdings.forEach(holding => {
      const path = plan.view.modules[holding.module].path,
        key = JSON.stringify([path, holding.content]);
      if (!rows.has(key)) rows.set(key, { path, content: holding.content, plans: [0, 0] });
      rows.get(key).plans[which] += holding.bytes;
    }),
  );
  return [...rows.values()]
    .filter(({ plans: [a, b] }) => a !== b)
    .sort((x, y) => Math.abs(y.plans[1] - y.plans[0]) - Math.abs(x.plans[1] - x.plans[0]));
}

let changesShown = 30;
function renderChanges() {
  byId('changes-section').hidden = !two;
  if (!two) return;
  const both = ([a, b], text) => (text(a) === text(b) ? text(a) : `${text(a)} → ${text(b)}`);
  const open = path => {
    select(path);
    byId('module-title').scrollIntoView({ block: 'center' });
  };
  const goto = path => ({
    tabindex: 0,
    click: () => open(path),
    keydown: event => {
      if (event.key === 'Enter') open(path);
    },
  });
  const parts = differences(),
    held = heldDifferences();
  const of = (row, part) => row.plans.map(plan => plan[part]);
  const head = list =>
    h(
      'thead',
      {},
      h(
        'tr',
        {},
        list.map(([words, kind]) => h('th', { class: kind, scope: 'col' }, words)),
      ),
    );
  const row = row =>
    h(
      'tr',
      goto(row.path),
      h('td', { class: 'text mono' }, short(row.path)),
      h('td', { class: 'text' }, row.phase),
      h('td', { class: 'text mono' }, row.work),
      h('td', {}, both(of(row, 'count'), count)),
      h('td', {}, row.axes ? both(of(row, 'sent'), bytes) : ''),
      h('td', {}, both(of(row, 'seconds'), seconds)),
      h('td', {}, change(...of(row, 'of_step'), seconds)),
    );
  const heldRow = row =>
    h(
      'tr',
      goto(row.path),
      h('td', { class: 'text mono' }, short(row.path)),
      h('td', { class: 'text' }, row.content),
      h('td', {}, both(row.plans, bytes)),
      h('td', {}, change(...row.plans, bytes)),
    );
  const more = Math.max(parts.length, held.length) > changesShown;
  show(
    'changes',
    parts.length + held.length === 0 && h('p', { class: 'quiet' }, 'Nothing differs.'),
    h(
      'div',
      { class: 'changes' },
      parts.length > 0 &&
        h(
          'div',
          { class: 'scroll' },
          h(
            'table',
            {},
            head([
              ['module', 'text'],
              ['phase', 'text'],
              ['work', 'text'],
              ['count', ''],
              ['sent', ''],
              ['time', ''],
              ['adds to the step', ''],
            ]),
            h('tbody', {}, parts.slice(0, changesShown).map(row)),
          ),
        ),
      held.length > 0 &&
        h(
          'div',
          { class: 'scroll' },
          h(
            'table',
            {},
            head([
              ['module', 'text'],
              ['at the peak of memory', 'text'],
              ['bytes', ''],
              ['change', ''],
            ]),
            h('tbody', {}, held.slice(0, changesShown).map(heldRow)),
          ),
        ),
    ),
    more &&
      h(
        'button',
        {
          click: () => {
            changesShown += 300;
            renderChanges();
          },
        },
        `show more of ${parts.length} and ${held.length} rows`,
      ),
  );
}
