// The whole step on one scale of time: stretches, how busy each lane is, what the arena holds.

const HELD = {
  parameters: 'parameters',
  state: 'optimizer state',
  gradients: 'gradients',
  saved: 'saved for the backward pass',
  communication: 'communication buffers',
  temporaries: 'temporaries',
  others: 'data and results',
};

const swatch = color => h('span', { class: 'swatch', style: { background: color } });

function renderStep() {
  const width = Math.max(320, byId('step').clientWidth || 1200);
  const longest = Math.max(...shownPlans().map(plan => plan.view.seconds));
  const highest = Math.max(...shownPlans().map(plan => plan.view.arena.bytes));
  show(
    'step',
    shownPlans().map(plan => stepDrawing(plan, width, longest, highest)),
  );
}

function stepDrawing(plan, width, longest, highest) {
  const { view } = plan,
    { bins, stretches } = view.execution,
    { arena } = view;
  const [left, right] = [72, 12],
    inner = width - left - right;
  const x = at => px(left + (longest > 0 ? at / longest : 0) * inner);
  const parts = [];
  let y = 4;
  const label = (text, at) => parts.push(s('text', { x: left - 8, y: at, 'text-anchor': 'end' }, text));
  // The stretches, so that the eye finds the layers.
  label(two ? `plan ${plan.name}` : 'stretches', y + 12);
  stretches.forEach(stretch => {
    const [from, to] = [x(stretch.start), x(stretch.start + stretch.seconds)],
      wide = to - from;
    const fill = `var(--kernel${[3, '', 2][PHASES.indexOf(stretch.phase)]})`;
    parts.push(
      s('rect', {
        x: from,
        y,
        width: Math.max(0.5, wide - 0.7),
        height: 16,
        fill,
        'fill-opacity': stretch.count > 1 ? 0.55 : 0.25,
      }),
    );
    const words = `${stretchName(view, stretch)} ${stretch.phase}`;
    const room = Math.floor((wide - 6) / 7.2);
    if (room > 5)
      parts.push(
        s(
          'text',
          { x: from + 4, y: y + 12, class: 'strong' },
          words.length > room ? words.slice(0, room - 1) + '…' : words,
        ),
      );
  });
  y += 20;
  // How busy kernels and collectives are.
  const area = (values, below, high, color) => {
    const binWidth = view.seconds / values.length;
    const edge = (values, at) =>
      [at, at + 1].map(edge => `${x(edge * binWidth)},${px(y + high - Math.min(1, values[at]) * (high - 2))}`);
    const above = values.map((value, at) => value + below[at]);
    const forth = above.flatMap((_, at) => edge(above, at)),
      back = below.flatMap((_, at) => edge(below, at)).reverse();
    if (values.some(value => value > 0))
      parts.push(s('polygon', { points: [...forth, ...back].join(' '), fill: color }));
    return above;
  };
  const lane = (name, high, draw) => {
    label(name, y + high - 4);
    parts.push(s('line', { x1: left, x2: x(view.seconds), y1: y + high, y2: y + high, stroke: 'var(--line)' }));
    draw(bins.compute.map(() => 0));
    y += high + 6;
  };
  lane('kernels', 20, none => area(bins.compute, none, 20, 'var(--kernel)'));
  lane('collectives', 20, none =>
    bins.communication.reduce((below, shares, axis) => area(shares, below, 20, hue(axis)), none),
  );
  lane('waiting', 14, none => area(bins.waiting, none, 14, 'var(--wait)'));
  y += 18;
  // The arena.
  const high = 150,
    top = y,
    most = Math.max(highest, page.memory <= 1.35 * highest ? page.memory : 0);
  const level = amount => px(top + high - (most > 0 ? amount / most : 0) * high);
  let below = arena.moments.map(() => 0);
  arena.kinds.forEach((kind, k) => {
    const above = below.map((base, at) => base + arena.moments[at].bytes[k]);
    if (above.some((value, at) => value > below[at])) {
      const step = view.seconds / arena.moments.length;
      const edge = (values, at) => [
        `${x(at * step)},${level(values[at])}`,
        `${x((at + 1) * step)},${level(values[at])}`,
      ];
      const forth = above.flatMap((_, at) => edge(above, at)),
        back = below.flatMap((_, at) => edge(below, at)).reverse();
      parts.push(s('polygon', { points: [...forth, ...back].join(' '), fill: `var(--held${k})` }));
    }
    below = above;
  });
  for (const share of [0, 0.5, 1]) label(bytes(share * most), level(share * most) + (share === 1 ? 9 : share ? 4 : 0));
  const rule = (amount, words, color) => {
    parts.push(
      s('line', {
        x1: left,
        x2: x(view.seconds),
        y1: level(amount),
        y2: level(amount),
        stroke: color,
        'stroke-dasharray': '4 3',
      }),
    );
    parts.push(
      s('text', { x: x(view.seconds) - 4, y: level(amount) + 12, 'text-anchor': 'end', class: 'strong halo' }, words),
    );
  };
  if (page.memory <= most) rule(page.memory, `a rank has ${bytes(page.memory)}`, 'var(--bad)');
  const full = sum(arena.peak.bytes),
    peak = x(arena.peak.at);
  parts.push(
    s('line', { x1: peak, x2: peak, y1: level(full), y2: top + high, stroke: 'var(--ink)', 'stroke-width': 1 }),
  );
  parts.push(
    s('circle', { cx: peak, cy: level(full), r: 3.5, fill: 'var(--paper)', stroke: 'var(--ink)', 'stroke-width': 1.5 }),
  );
  const leftward = peak > left + inner * 0.6;
  parts.push(
    s(
      'text',
      {
        x: peak + (leftward ? -4 : 4),
        y: level(full) - 8,
        'text-anchor': leftward ? 'end' : 'start',
        class: 'strong halo',
      },
      `peak ${bytes(full)} at ${seconds(arena.peak.at)}`,
    ),
  );
  y = top + high;
  parts.push(s('line', { x1: left, x2: left + inner, y1: y, y2: y, stroke: 'var(--faint)' }));
  for (const at of ticks(longest, inner / 110))
    parts.push(s('text', { x: x(at), y: y + 14, 'text-anchor': at === 0 ? 'start' : 'middle' }, seconds(at)));
  // A pointer reads both.
  const cursor = s('line', { y1: 4, y2: y, stroke: 'var(--ink)', 'stroke-opacity': 0.5, visibility: 'hidden' });
  const hit = s('rect', { x: left, y: 0, width: inner, height: y, fill: 'transparent' });
  const read = (event, at) => {
    if (at < 0 || at > view.seconds) return hide();
    const bin = Math.min(arena.moments.length - 1, Math.floor((at / view.seconds) * arena.moments.length));
    const moment = arena.moments[bin],
      stretch = stretches.findLast(stretch => stretch.start <= at);
    cursor.setAttribute('x1', x(at));
    cursor.setAttribute('x2', x(at));
    cursor.setAttribute('visibility', 'visible');
    tell(
      event,
      h('b', {}, `${seconds(at)} into the step`),
      stretch && h('div', {}, `${stretchName(view, stretch)}, ${stretch.phase}`),
      h(
        'div',
        {},
        `kernels ${percent(bins.compute[bin])}, `,
        `collectives ${percent(sum(bins.communication, shares => shares[bin]))}, `,
        `waiting ${percent(bins.waiting[bin])}`,
      ),
      h(
        'table',
        {},
        arena.kinds
          .map(
            (kind, k) =>
              moment.bytes[k] > 0 &&
              h('tr', {}, h('td', {}, swatch(`var(--held${k})`), ' ', HELD[kind]), h('td', {}, bytes(moment.bytes[k]))),
          )
          .reverse(),
        h('tr', {}, h('td', {}, 'in use'), h('td', {}, h('b', {}, bytes(sum(moment.bytes))))),
      ),
    );
  };
  const hide = () => {
    cursor.setAttribute('visibility', 'hidden');
    quiet();
  };
  hit.addEventListener('pointermove', event => read(event, ((event.offsetX - left) / inner) * longest));
  hit.addEventListener('pointerleave', hide);
  const key = h(
    'div',
    { class: 'key' },
    h('span', {}, h('b', {}, 'arena'), ` ${bytes(arena.bytes)}, at its peak:`),
    arena.kinds.map(
      (kind, k) =>
        arena.peak.bytes[k] > 0 &&
        h('span', {}, swatch(`var(--held${k})`), HELD[kind], ' ', h('b', {}, bytes(arena.peak.bytes[k]))),
    ),
    arena.steady_bytes > full && h('span', {}, `gaps ${bytes(arena.steady_bytes - full)}`),
    arena.bytes > arena.steady_bytes &&
      h('span', {}, `the first step takes ${bytes(arena.bytes - arena.steady_bytes)} more`),
  );
  return h(
    'div',
    {},
    s(
      'svg',
      {
        height: y + 18,
        role: 'img',
        'aria-label': `the step of plan ${plan.flags}: lanes and arena over ${seconds(view.seconds)}`,
      },
      parts,
      cursor,
      hit,
    ),
    key,
  );
}

function ticks(end, wanted) {
  if (!(end > 0)) return [0];
  const rough = end / Math.max(2, wanted),
    unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(n => n * unit).find(n => n >= rough);
  return Array.from({ length: Math.floor((end / step) * 0.99) + 1 }, (_, at) => at * step);
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
  for (const part of stretch.drawn)
    if (part.lane !== 1) {
      const at = outer(view.execution.actions[part.action].module);
      times.set(at, (times.get(at) ?? 0) + part.seconds);
    }
  const whole = sum([...times.values()]);
  const names =
    stretch.count > 1
      ? [stretch.module]
      : [...times]
          .filter(([at, time]) => at === stretch.module || time > 0.15 * whole)
          .sort((a, b) => b[1] - a[1])
          .map(([at]) => at)
          .slice(0, 3);
  const path = at => {
    const { name, element, parent } = view.modules[at],
      list = element ? view.modules[parent].name : '';
    return short(list ? `${list}.${name}` : name);
  };
  return (
    (stretch.count > 1 ? `×${stretch.count} ` : '') + (names.length ? names : [stretch.module]).map(path).join(', ')
  );
}
