// With `#test` in its address the page checks itself and writes the result into the element `self-check`.

// The page never has more elements than this, whatever is selected.
const MOST_ELEMENTS = 12000;

function selfCheck() {
  const failures = [];
  let checks = 0;
  const check = (holds, words) => {
    checks += 1;
    if (!holds) failures.push(words);
  };
  const near = (a, b, words) =>
    check(Math.abs(a - b) <= 1e-6 * Math.max(Math.abs(a), Math.abs(b), 1e-12), `${words}: ${a} and ${b}`);
  const elements = () => document.querySelectorAll('*').length;
  const data = JSON.stringify(page);
  const wrong = ['NaN', 'undefined', 'Infinity', '[object '].filter(word => !data.includes(word));
  const clean = where => {
    const markup = [...document.querySelectorAll('header, main')].map(part => part.outerHTML).join('');
    for (const word of wrong) check(!markup.includes(word), `${where}: the page says ${word}`);
    check(elements() < MOST_ELEMENTS, `${where}: ${elements()} elements`);
  };
  for (const plan of plans) {
    const { view, sums, totals } = plan,
      of = `plan ${plan.name}`,
      { execution, arena } = view;
    // Modules add up to the whole.
    near(
      sum(sums.all[0].compute) + sum(sums.all[0].waiting),
      view.seconds,
      `${of}: seconds of all modules and of the step`,
    );
    near(sum(sums.all[0].sent), totals.sent, `${of}: bytes sent by modules and in all`);
    check(
      sums.all[0].held === arena.bytes,
      `${of}: bytes held by modules (${sums.all[0].held}) and the arena (${arena.bytes})`,
    );
    near(
      sum(
        execution.actions.filter(a => !a.axes),
        a => a.seconds,
      ),
      execution.busy.compute,
      `${of}: seconds of kernels`,
    );
    near(
      sum(
        execution.actions.filter(a => a.axes),
        a => a.seconds,
      ),
      execution.busy.communication,
      `${of}: seconds of collectives`,
    );
    // Stretches cover the step, and their lanes add up.
    near(
      sum(execution.stretches, stretch => stretch.seconds),
      view.seconds,
      `${of}: seconds of stretches and of the step`,
    );
    for (const lane of ['compute', 'communication', 'waiting']) {
      near(
        sum(execution.stretches, stretch => stretch.busy[lane]),
        execution.busy[lane],
        `${of}: ${lane} of stretches`,
      );
      check(
        execution.bins[lane].flat().every(share => share >= 0 && share <= 1.001),
        `${of}: shares of ${lane}`,
      );
    }
    check(
      execution.stretches.every(stretch =>
        stretch.drawn.every(part => part.at >= 0 && part.at + part.seconds <= stretch.drawn_seconds * 1.0001),
      ),
      `${of}: a part is outside its stretch`,
    );
    // No moment is fuller than the peak, and the peak is among the moments.
    const fullest = Math.max(...arena.moments.map(moment => sum(moment.bytes)));
    check(
      fullest === sum(arena.peak.bytes),
      `${of}: the fullest moment (${fullest}) and the peak (${sum(arena.peak.bytes)})`,
    );
    check(
      sum(arena.peak.bytes) <= arena.steady_bytes && arena.steady_bytes <= arena.bytes,
      `${of}: the peak does not fit into the arena`,
    );
    // Every value can be drawn, and its drawing says how it is placed.
    for (const type of view.types) {
      const drawing = glyph(view, type),
        lines = drawing.querySelectorAll('line').length;
      const isCut = type.dims.some(dim => dim.axes.some(axis => view.mesh[axis].size > 1));
      check(
        drawing.childElementCount > 0 && !/NaN|undefined/.test(drawing.outerHTML),
        `${of}: ${type.text} is not drawn`,
      );
      check(isCut === lines > 0, `${of}: ${type.text} has ${lines} cuts`);
      check((type.partial !== null) === (drawing.querySelector('text') !== null), `${of}: ${type.text}: terms`);
      check(
        typeText(view, type)
          .map(part => (typeof part === 'string' ? part : part.textContent))
          .join('') === type.text,
        `${of}: ${type.text} is written differently`,
      );
    }
    check(
      view.listings.every(listing =>
        listing.operations.every(
          operation =>
            operation.types.every(ty => view.types[ty]) && operation.operands.every(operand => view.types[operand.ty]),
        ),
      ),
      `${of}: a type is missing`,
    );
    check(
      view.modules.every((module, at) => (at === 0 ? module.parent === null : module.parent < at)),
      `${of}: the tree of modules`,
    );
  }
  if (two) {
    const [a, b] = plans,
      parts = differences(),
      held = heldDifferences();
    const of = (part, rows) => sum(rows, ({ plans: [x, y] }) => y[part] - x[part]);
    const scale = Math.max(a.totals.step, b.totals.step);
    check(
      Math.abs(of('of_step', parts) - (b.totals.compute + b.totals.waiting - a.totals.compute - a.totals.waiting)) <=
        1e-6 * scale,
      'differences of the step',
    );
    check(
      Math.abs(of('sent', parts) - (b.totals.sent - a.totals.sent)) <= 1e-6 * Math.max(a.totals.sent, b.totals.sent),
      'differences of bytes',
    );
    check(sum(held, ({ plans: [x, y] }) => y - x) === b.totals.memory - a.totals.memory, 'differences of memory');
    check(byId('plans').querySelectorAll('button').length === 3, 'both plans can be chosen');
  }
  check(document.title.includes('tpc view'), 'the title');
  check(
    document.querySelectorAll('script').length === 2 && document.querySelectorAll('link, img, iframe').length === 0,
    'a foreign element',
  );
  // Every selection can be shown.
  let most = 0;
  const before = { ...state };
  for (const shown of two ? [0, 1, 'both'] : [0]) {
    state.shown = shown;
    state.detail = shown === 'both' ? 0 : shown;
    render();
    clean(`plans ${shown}`);
    check(
      byId('timeline').querySelectorAll('canvas').length === shownPlans().length &&
        byId('step').querySelectorAll('svg').length === shownPlans().length,
      'each plan has its step',
    );
    for (const { path } of tree)
      for (const [section] of SECTIONS) {
        state.section = section;
        select(path);
        most = Math.max(most, elements());
        clean(`${path}, ${section}`);
        const rows = [...byId('module').querySelectorAll('.op')];
        check(
          rows.every(row => row.querySelector('.glyph')),
          `${path}, ${section}: a value is not drawn`,
        );
        new Set([rows.find(row => row.classList.contains('sends')), rows[0]]).forEach(row => row?.click());
        check(
          rows.length === 0 || byId('module').querySelector('.more svg') !== null,
          `${path}, ${section}: a value is not drawn on the mesh`,
        );
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
  const said = failures.length
    ? `failed: ${failures.length} of ${checks} checks\n${failures.slice(0, 40).join('\n')}`
    : `passed: ${checks} checks`;
  const result = h(
    'div',
    {
      id: 'self-check',
      'data-checks': checks,
      'data-failures': failures.length,
      'data-elements': most,
      'data-ready': document.documentElement.dataset.ready,
    },
    said,
  );
  document.body.append(result);
}

if (location.hash === '#test') {
  try {
    selfCheck();
  } catch (error) {
    document.body.append(h('div', { id: 'self-check', 'data-failures': 1 }, `failed: ${error.stack}`));
  }
}
