// The selected module: its operations, or its kernels and collectives.
/** The listings of a module and of all in it: of each module the one that stands for most, and the others. */
function listings(plan, path, section) {
  const at = plan.at.get(path);
  if (at === undefined) return { main: [], others: [] };
  const inside = new Set();
  (function add(at) {
    inside.add(at);
    plan.children[at].forEach(add);
  })(at);
  const best = new Map(),
    others = [];
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

const SECTIONS = [
  ['inputs', 'owns'],
  ['forward', 'forward'],
  ['backward', 'backward'],
  ['optimizer', 'optimizer'],
  ['costs', 'time and memory'],
];

function renderDetail() {
  const plan = detailPlan(),
    { view } = plan,
    at = plan.at.get(state.module);
  const row = rowOf(state.module);
  show('module-title', title(state.module), row.count > 1 && h('small', {}, `stands for ${row.count} equal modules`));
  const sizes = Object.fromEntries(
    SECTIONS.slice(0, 4).map(([section]) => [
      section,
      sum(listings(plan, state.module, section).main, listing => listing.operations.length),
    ]),
  );
  if (state.section !== 'costs' && !sizes[state.section])
    state.section = SECTIONS.map(([section]) => section).find(section => sizes[section]) ?? 'costs';
  const tab = ([section, words]) =>
    h(
      'button',
      {
        role: 'tab',
        'aria-selected': String(state.section === section),
        disabled: section !== 'costs' && !sizes[section],
        click: () => {
          state.section = section;
          state.rows = FIRST_ROWS;
          renderDetail();
        },
      },
      words,
      section !== 'costs' && h('span', { class: 'quiet' }, ` ${sizes[section]}`),
    );
  const tabs = h(
    'div',
    { class: 'bar', role: 'tablist' },
    SECTIONS.map(tab),
    state.section !== 'costs' &&
      state.section !== 'inputs' &&
      h(
        'label',
        { class: 'quiet' },
        h('input', {
          type: 'checkbox',
          checked: state.only,
          change: event => {
            state.only = event.target.checked;
            renderDetail();
          },
        }),
        ' collectives only',
      ),
    state.shown === 'both' &&
      h(
        'span',
        { class: 'bar', role: 'radiogroup', 'aria-label': 'Plan of the operations' },
        plans.map((other, i) =>
          h(
            'button',
            {
              role: 'radio',
              'aria-checked': String(state.detail === i),
              click: () => {
                state.detail = i;
                renderDetail();
              },
            },
            `plan ${other.name}`,
          ),
        ),
      ),
  );
  if (at === undefined)
    return show('module', tabs, h('p', { class: 'quiet' }, 'The program of this plan has no such module.'));
  show('module', tabs, state.section === 'costs' ? costsTable(plan, at) : operations(plan, view));
}

function operations(plan, view) {
  const { main, others } = listings(plan, state.module, state.section);
  const lines = list =>
    list
      .flatMap(listing => listing.operations.map(operation => ({ operation, listing })))
      .filter(({ operation }) => !state.only || operation.sent)
      .sort((a, b) => a.operation.name - b.operation.name);
  const all = lines(main),
    cut = all.slice(0, state.rows);
  const shown = main.filter(listing => listing.count > 1).map(listing => listing.shown);
  const like = main.reduce((most, listing) => Math.max(most, listing.count), 0);
  const inside = shown.reduce((shortest, path) => (shortest.length <= path.length ? shortest : path), shown[0] ?? '');
  const words = like > 1 ? `as in ${title(inside)}; the step has these ${like} times` : '';
  return [
    key(view),
    words && h('p', { class: 'quiet' }, words),
    h(
      'div',
      { class: 'ops', keydown: opsKey },
      cut.map(({ operation, listing }, at) => opRow(view, operation, listing, at === 0)),
    ),
    all.length === 0 && h('p', { class: 'quiet' }, 'No collectives here.'),
    all.length > cut.length &&
      h(
        'button',
        {
          click: () => {
            state.rows = Math.min(all.length, state.rows + 480);
            renderDetail();
          },
        },
        `show more of the ${all.length} operations`,
      ),
    others.length > 0 &&
      h(
        'details',
        {},
        h(
          'summary',
          {},
          `${counted(others.length, 'variant')}: modules of the same kind whose operations or placements differ`,
        ),
        others.map(listing => {
          const body = h('div', { class: 'ops', keydown: opsKey });
          const fill = () =>
            body.childElementCount ||
            body.append(
              ...lines([listing])
                .slice(0, FIRST_ROWS)
                .map(({ operation }, at) => opRow(view, operation, listing, at === 0)),
            );
          return h(
            'details',
            { toggle: event => event.target.open && fill() },
            h('summary', {}, `${short(listing.shown)} ×${listing.count}, ${listing.operations.length} operations`),
            body,
          );
        }),
      ),
  ];
}

/** What the drawings of values mean. */
function key(view) {
  const find = fits =>
    [2, 3, 1].map(dims => view.types.find(type => drawnDims(type).length === dims && fits(type))).find(Boolean);
  const isCut = type => type.dims.some(dim => dim.axes.length);
  const some = find(type => !type.partial && isCut(type)),
    same = find(type => !type.partial && !isCut(type)),
    terms = find(type => type.partial?.op === 'sum');
  const one = (type, words) => type && h('span', {}, glyph(view, type), words);
  return h(
    'div',
    { class: 'key' },
    one(some, 'cut; the piece of the first rank is filled'),
    one(same, 'whole on every rank'),
    one(terms, 'terms of a sum, one on each rank'),
    view.mesh.map((axis, at) => h('span', {}, swatch(hue(at)), h('b', {}, axis.name), `=${axis.size}`)),
  );
}

function opRow(view, operation, listing, first) {
  const type = view.types[operation.types[0]],
    from = operation.operands[0];
  const moves = !operation.sent && operation.why && listing.section !== 'inputs';
  const row = h('div', {
    class: `op${operation.sent ? ' sends' : moves ? ' moves' : ''}`,
    tabindex: first ? 0 : -1,
    role: 'button',
    'aria-expanded': 'false',
    style: operation.sent ? { '--hue': hue(operation.sent.axes[0]) } : {},
    click: event => {
      if (!event.target.closest('.more')) open(row);
    },
  });
  const open = () => {
    const known = row.querySelector('.more');
    row.classList.toggle('open', !known);
    row.setAttribute('aria-expanded', String(!known));
    if (known) return known.remove();
    row.append(
      h(
        'div',
        { class: 'more' },
        h(
          'div',
          { class: 'meshes' },
          operation.sent && meshDrawing(view, view.types[from.ty], `before, ${from.name}:`),
          operation.types.map((ty, at) =>
            meshDrawing(
              view,
              view.types[ty],
              operation.sent
                ? `after, %${operation.name}:`
                : `%${operation.name}${operation.types.length > 1 ? `.${at}` : ''}:`,
            ),
          ),
        ),
      ),
    );
  };
  const operands = operation.operands.map(operand => operand.name).join(', ');
  const picture = operation.sent
    ? h('span', { class: 'arrow' }, glyph(view, view.types[from.ty]), '→', glyph(view, type))
    : glyph(view, type);
  row.append(
    h(
      'span',
      { class: 'n' },
      `%${operation.name}`,
      operation.times > 1 &&
        h(
          'div',
          { class: 'times', title: 'repeats in the module, with the operations around it' },
          `×${operation.times}`,
        ),
    ),
    picture,
    h(
      'div',
      { class: 'what' },
      operation.sent
        ? [
            h('b', { class: 'mono' }, operation.text),
            ` ${operands} `,
            h('span', {}, `sends ${bytes(operation.sent.bytes)}`),
          ]
        : h('span', { class: 'mono' }, operation.text, operands && ` ${operands}`),
      h(
        'div',
        { class: 'type' },
        operation.types.map((ty, at) => [at ? ', ' : '', typeText(view, view.types[ty])]),
      ),
      operation.why && h('div', { class: 'why' }, operation.why),
    ),
  );
  return row;
}

function opsKey(event) {
  const row = event.target.closest('.op');
  const move = { ArrowDown: 'nextElementSibling', ArrowUp: 'previousElementSibling' }[event.key];
  if (!row) return;
  if (move && row[move]) {
    row.setAttribute('tabindex', -1);
    row[move].setAttribute('tabindex', 0);
    row[move].focus();
  } else if (event.key === 'Enter' || event.key === ' ') row.click();
  else return;
  event.preventDefault();
}

/** The kernels and collectives of a module and of all in it, those that take most of the step first. */
function costsTable(plan, at) {
  const { view } = plan,
    inside = new Set();
  (function add(at) {
    inside.add(at);
    plan.children[at].forEach(add);
  })(at);
  const actions = view.execution.actions
    .filter(action => inside.has(action.module))
    .sort((a, b) => b.of_step - a.of_step || b.sent - a.sent);
  const inner = action => (action.module === at ? '' : view.modules[action.module].path);
  const row = action => [
    h(
      'tr',
      { class: action.why || inner(action) ? 'joined' : '' },
      h(
        'td',
        { class: 'text mono' },
        action.axes
          ? h(
              'span',
              { style: { color: hue(axisOf(view, action.axes[0])) } },
              h('b', {}, action.label),
              ` ${action.axes.join(',')}`,
            )
          : action.label,
      ),
      h('td', { class: 'text' }, action.phase),
      h('td', {}, count(action.count)),
      h('td', {}, action.axes ? bytes(action.sent) : ''),
      h('td', {}, seconds(action.seconds)),
      h('td', {}, percent(view.seconds > 0 ? action.of_step / view.seconds : 0)),
    ),
    (action.why || inner(action)) &&
      h(
        'tr',
        {},
        h(
          'td',
          { class: 'text wrap quiet', colspan: 6 },
          inner(action) && h('div', { class: 'mono' }, inner(action)),
          action.why,
        ),
      ),
  ];
  const cut = actions.slice(0, state.rows);
  return [
    h(
      'div',
      { class: 'scroll' },
      h(
        'table',
        {},
        h(
          'thead',
          {},
          h(
            'tr',
            {},
            [
              ['what', 'text'],
              ['phase', 'text'],
              ['count', ''],
              ['sent', ''],
              ['time', ''],
              ['of the step', ''],
            ].map(([words, kind]) => h('th', { class: kind, scope: 'col' }, words)),
          ),
        ),
        h('tbody', {}, cut.map(row)),
      ),
    ),
    actions.length > cut.length &&
      h(
        'button',
        {
          click: () => {
            state.rows += 480;
            renderDetail();
          },
        },
        `show more of the ${actions.length} rows`,
      ),
    heldTable(plan, inside),
  ];
}

/** What modules hold when the arena is fullest. */
function heldTable({ view }, inside) {
  const held = new Map();
  for (const { module, content, bytes } of view.arena.holdings)
    if (inside.has(module)) held.set(content, (held.get(content) ?? 0) + bytes);
  const rows = [...held]
    .sort((a, b) => b[1] - a[1])
    .map(([content, amount]) =>
      h(
        'tr',
        {},
        h('td', { class: 'text' }, content),
        h('td', {}, bytes(amount)),
        h('td', {}, percent(amount / view.arena.bytes)),
      ),
    );
  return (
    rows.length > 0 && [
      h('h3', {}, 'In the arena when it is fullest'),
      h('table', { style: { width: 'auto' } }, h('tbody', {}, rows)),
    ]
  );
}
