// The tree of modules with what each of them costs.
function renderModules() {
  const shown = shownPlans(),
    pair = shown.length > 1;
  const root = shown.map(plan => plan.sums.all[0]);
  const most = cost => Math.max(...shown.map(plan => sum(plan.sums.all[0][cost])));
  const heldMost = Math.max(...root.map(all => all.held));
  const of = (plan, path) => plan.sums.all[plan.at.get(path)];
  const cell = (amount, whole, text, fill, rule) =>
    h(
      'td',
      {
        class: `${amount === 0 ? 'zero' : ''}${rule ? ' rule' : ''}`,
        style: { '--share': whole > 0 ? Math.min(1, amount / whole).toFixed(4) : 0, '--fill': fill },
      },
      amount === 0 ? '·' : text(amount),
    );
  const tint = (color, part) => `color-mix(in srgb, ${color} ${part}%, transparent)`;
  const fills = {
    compute: tint('var(--kernel)', 28),
    waiting: tint('var(--wait)', 16),
    sent: tint('var(--axis1)', 22),
    held: tint('var(--held1)', 28),
  };
  const cells = path => {
    if (pair) {
      const groups = [
        ['compute', seconds],
        ['waiting', seconds],
        ['sent', bytes],
      ];
      return [
        ...groups.flatMap(([cost, text]) =>
          shown.map((plan, at) => cell(sum(of(plan, path)?.[cost] ?? [0]), most(cost), text, fills[cost], at === 0)),
        ),
        ...shown.map((plan, at) => cell(of(plan, path)?.held ?? 0, heldMost, bytes, fills.held, at === 0)),
      ];
    }
    const all = of(shown[0], path);
    if (!all) return [];
    return [
      ...all.compute.map((x, p) => cell(x, most('compute'), seconds, fills.compute, p === 0)),
      cell(sum(all.waiting), most('waiting'), seconds, fills.waiting, true),
      ...all.sent.map((x, p) => cell(x, most('sent'), bytes, fills.sent, p === 0)),
      cell(all.held, heldMost, bytes, fills.held, true),
    ];
  };
  const head = pair
    ? [
        h(
          'tr',
          {},
          h('th', {}),
          [
            ['kernels', 2],
            ['waiting', 2],
            ['sent', 2],
            ['memory at the peak', 2],
          ].map(([words, span]) => h('th', { class: 'group rule', colspan: span, scope: 'colgroup' }, words)),
        ),
        h(
          'tr',
          {},
          h('th', { class: 'text', scope: 'col' }, 'module'),
          [0, 1, 2, 3].flatMap(() =>
            ['A', 'B'].map((name, at) => h('th', { class: at ? '' : 'rule', scope: 'col' }, name)),
          ),
        ),
      ]
    : [
        h(
          'tr',
          {},
          h('th', {}),
          [
            ['kernels', 3],
            ['waiting', 1],
            ['sent', 3],
            ['memory', 1],
          ].map(([words, span]) => h('th', { class: 'group rule', colspan: span, scope: 'colgroup' }, words)),
        ),
        h(
          'tr',
          {},
          h('th', { class: 'text', scope: 'col' }, 'module'),
          ['forward', 'backward', 'optimizer', '', 'forward', 'backward', 'optimizer', 'at the peak'].map((name, at) =>
            h('th', { class: [0, 3, 4, 7].includes(at) ? 'rule' : '', scope: 'col' }, name),
          ),
        ),
      ];
  const visible = tree.filter(
    row => shown.some(plan => plan.at.has(row.path)) && ![...above(row)].some(path => state.closed.has(path)),
  );
  const rows = visible.map(row =>
    h(
      'tr',
      {
        class: row.path === state.module ? 'chosen' : '',
        tabindex: row.path === state.module ? 0 : -1,
        'data-path': row.path,
        role: 'row',
        'aria-level': row.depth + 1,
        'aria-selected': String(row.path === state.module),
        'aria-expanded': row.inner ? String(!state.closed.has(row.path)) : undefined,
        click: event => {
          if (event.target.classList.contains('fold')) toggle(row);
          else {
            select(row.path);
            byId('modules').querySelector('tr.chosen')?.focus({ preventScroll: true });
          }
        },
      },
      h(
        'td',
        { class: 'text name mono', style: { '--depth': row.depth }, title: title(row.path) },
        h('span', { class: 'fold' }, row.inner ? (state.closed.has(row.path) ? '▶' : '▼') : ''),
        row.name || '(model)',
        row.element && row.count > 1 && h('span', { class: 'times' }, `×${row.count}`),
      ),
      cells(row.path),
    ),
  );
  show(
    'modules',
    h(
      'div',
      { class: 'scroll' },
      h(
        'table',
        { role: 'treegrid', 'aria-label': 'Modules', keydown: event => treeKey(event, visible) },
        h('thead', {}, head),
        h('tbody', {}, rows),
      ),
    ),
  );
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
  const at = visible.findIndex(row => row.path === state.module),
    row = visible[at];
  const to = path => {
    select(path);
    byId('modules').querySelector('tr.chosen')?.focus();
  };
  if (event.key === 'ArrowDown' && visible[at + 1]) to(visible[at + 1].path);
  else if (event.key === 'ArrowUp' && visible[at - 1]) to(visible[at - 1].path);
  else if (event.key === 'ArrowLeft' && row) {
    if (row.inner && !state.closed.has(row.path)) toggle(row);
    else if (row.parent !== null) to(row.parent);
  } else if (event.key === 'ArrowRight' && row?.inner) {
    if (state.closed.has(row.path)) toggle(row);
    else if (visible[at + 1]) to(visible[at + 1].path);
  } else return;
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
