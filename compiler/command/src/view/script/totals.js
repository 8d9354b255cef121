// The header: what is shown, which plan, and the numbers of whole programs.
function renderHeader() {
  const flags = page.plans.map(plan => plan.flags.replace('--plan ', '').replace(' --mesh ', ' on ')).join(' and ');
  document.title = `${page.model} · ${flags} · tpc view`;
  show('title', page.model);
  show('described', page.described);
  const choice = (label, value) =>
    h(
      'button',
      {
        role: 'radio',
        'aria-checked': String(state.shown === value),
        click: () => {
          state.shown = value;
          if (value !== 'both') state.detail = value;
          render();
        },
      },
      label,
    );
  show(
    'plans',
    two
      ? [...plans.map((plan, at) => choice(`${plan.name}  ${plan.flags}`, at)), choice('side by side', 'both')]
      : h('span', { class: 'mono' }, plans[0].flags),
  );
}

function renderTotals() {
  const shown = shownPlans();
  const cell = (what, of, text, note, better = -1) => {
    const values = shown.map(plan => of(plan.totals));
    const one = value => {
      const [number, unit = ''] = text(value).split(' ');
      return h('div', { class: 'number' }, number, h('span', {}, unit));
    };
    const pair = () =>
      h(
        'div',
        { class: 'pair' },
        values.flatMap((value, at) => {
          const other = values[1 - at],
            worse = better * value < better * other;
          return [h('i', {}, plans[at].name), h('span', { class: worse ? 'off' : '' }, text(value))];
        }),
      );
    return h(
      'div',
      { class: 'total' },
      h('div', { class: 'what' }, what),
      shown.length > 1 ? pair() : one(values[0]),
      h(
        'div',
        { class: 'note' },
        shown.length > 1 ? change(values[0], values[1], text, better) : note(shown[0].totals),
      ),
    );
  };
  const share = (part, whole) => (whole > 0 ? percent(part / whole) : '');
  show(
    'totals',
    cell(
      'step',
      t => t.step,
      seconds,
      t => `${count(page.tokens)} tokens`,
    ),
    cell(
      'kernels',
      t => t.compute,
      seconds,
      t => `${count(t.kernels)} of them`,
    ),
    cell(
      'waiting',
      t => t.waiting,
      seconds,
      t => `${share(t.waiting, t.step)} of the step`,
    ),
    cell(
      'collectives',
      t => t.flight,
      seconds,
      t => `${count(t.collectives)} of them`,
    ),
    cell(
      'sent by a rank',
      t => t.sent,
      bytes,
      t => (t.ranks === 1 ? 'one rank' : `${count(t.ranks)} ranks`),
    ),
    cell(
      'memory of a rank',
      t => t.memory,
      bytes,
      t =>
        t.memory > page.memory
          ? `${bytes(t.memory - page.memory)} more than it has`
          : `${share(t.memory, page.memory)} of ${bytes(page.memory)}`,
    ),
    cell(
      'tokens per second',
      t => t.tokens,
      x => count(Math.round(x)),
      () => 'all ranks',
      1,
    ),
    cell(
      'MFU',
      t => t.mfu,
      percent,
      () => 'of the peak of all ranks',
      1,
    ),
  );
}
