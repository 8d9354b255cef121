// The stretches of the step with their kernels and collectives. They are on a canvas, so that they are no elements.
const LANES = { 0: [40, 26], 1: [70, 26], 2: [40, 26] };
const TIMELINE_HEIGHT = 118;
/** The canvases with what is drawn on them, for pointers and keys. */
let canvases = [];

function renderTimeline() {
  canvases = [];
  const axes = new Map();
  shownPlans().forEach(plan => plan.view.mesh.forEach((axis, at) => axes.set(axis.name, at)));
  const key = h(
    'div',
    { class: 'key' },
    h('span', {}, swatch('var(--kernel3)'), 'kernels, forward'),
    h('span', {}, swatch('var(--kernel)'), 'backward'),
    h('span', {}, swatch('var(--kernel2)'), 'optimizer'),
    [...axes].map(([name, at]) => h('span', {}, swatch(hue(at)), 'collectives along ', h('b', {}, name))),
    h('span', {}, h('span', { class: 'swatch hatch' }), 'waiting for a collective'),
    h('span', {}, h('span', { class: 'swatch', style: { border: '2px solid var(--focus)' } }), 'the selected module'),
  );
  show(
    'timeline',
    key,
    shownPlans().map(plan => timelineDrawing(plan)),
  );
  canvases.forEach(paint);
}

/** Where each stretch and each part of it is, in pixels. */
function layout(plan, room) {
  const { stretches } = plan.view.execution;
  const gap = 6,
    least = 46,
    left = two ? 20 : 2;
  const free = Math.max(room - left - gap * stretches.length, least * stretches.length);
  const whole = sum(stretches, stretch => stretch.drawn_seconds);
  // Stretches that would be too narrow get the least width; the others share what is left in proportion to their time.
  let narrow = new Set();
  for (let changed = true; changed;) {
    changed = false;
    const rest = free - least * narrow.size,
      time = sum(
        stretches.filter((_, at) => !narrow.has(at)),
        stretch => stretch.drawn_seconds,
      );
    stretches.forEach((stretch, at) => {
      if (!narrow.has(at) && (time <= 0 || (stretch.drawn_seconds / time) * rest < least)) {
        narrow.add(at);
        changed = true;
      }
    });
  }
  const rest = free - least * narrow.size,
    time = sum(
      stretches.filter((_, at) => !narrow.has(at)),
      stretch => stretch.drawn_seconds,
    );
  let x = left;
  const placed = stretches.map((stretch, at) => {
    const width = narrow.has(at) ? least : (stretch.drawn_seconds / time) * rest;
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
  const canvas = h('canvas', {
    tabindex: 0,
    role: 'img',
    'aria-label': `kernels and collectives of plan ${plan.flags}; arrow keys walk through them`,
  });
  canvas.style.width = `${Math.ceil(drawing.width)}px`;
  canvas.style.height = `${TIMELINE_HEIGHT}px`;
  const parts = drawing.placed.flatMap(placed => placed.parts).sort((a, b) => a.x - b.x || a.lane - b.lane);
  const entry = { plan, canvas, drawing, parts, current: -1 };
  canvases.push(entry);
  const find = event => {
    const [x, y] = [event.offsetX, event.offsetY];
    const near = part =>
      y >= part.y && y <= part.y + part.high && x >= part.x - 1.5 && x <= part.x + Math.max(part.width, 1) + 1.5;
    // Of several under the pointer, the smallest.
    return parts.filter(near).sort((a, b) => a.width - b.width)[0];
  };
  canvas.addEventListener('pointermove', event => {
    const part = find(event);
    if (part) tellPart(entry, part, event);
    else quiet();
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
      const part = parts[entry.current],
        at = canvas.getBoundingClientRect();
      paint(entry);
      tellPart(entry, part, { clientX: at.left + part.x, clientY: at.top + part.y + part.high });
    } else if (event.key === 'Enter' && entry.current >= 0) selectPart(plan, parts[entry.current]);
    else return;
    event.preventDefault();
  });
  canvas.addEventListener('blur', () => {
    entry.current = -1;
    quiet();
    paint(entry);
  });
  return canvas;
}

function selectPart(plan, part) {
  const action = plan.view.execution.actions[part.action];
  state.detail = plans.indexOf(plan);
  select(plan.view.modules[action.module].path, action.phase);
}

function tellPart({ plan }, part, event) {
  const { view } = plan,
    action = view.execution.actions[part.action];
  const what = part.lane === 2 ? `waiting for ${action.label}` : action.label;
  const each = action.count ? action.sent / action.count : 0;
  tell(
    event,
    h('b', {}, what, action.axes && ` along ${action.axes.join(', ')}`),
    ` ${seconds(part.seconds)}`,
    part.others > 0 && ` with ${part.others} others`,
    h('div', {}, `${title(view.modules[action.module].path)}, ${action.phase}`),
    action.axes &&
      h(
        'div',
        {},
        `sends ${bytes(each)}`,
        action.values > 1 && ` in ${action.values} values`,
        `; ×${count(action.count)} in the step`,
      ),
    action.why && h('div', { class: 'quiet' }, action.why),
  );
}

/** Draws a timeline. Colors come from the style sheet, so they follow the color scheme. */
function paint({ plan, canvas, drawing, parts, current }) {
  const { view } = plan,
    style = getComputedStyle(document.documentElement);
  const color = name => style.getPropertyValue(name).trim();
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.ceil(drawing.width * density);
  canvas.height = TIMELINE_HEIGHT * density;
  const c = canvas.getContext('2d');
  c.scale(density, density);
  c.font = '11px system-ui, sans-serif';
  const inside = selectedModules(plan);
  if (two) {
    c.fillStyle = color('--ink');
    c.font = '600 12px system-ui, sans-serif';
    c.fillText(plan.name, 2, 58);
    c.font = '11px system-ui, sans-serif';
  }
  for (const { stretch, x, width } of drawing.placed) {
    c.fillStyle = color('--ground');
    c.fillRect(x, LANES[0][0] - 2, width, LANES[1][0] + LANES[1][1] + 2 - LANES[0][0] + 2);
    c.save();
    c.beginPath();
    c.rect(x, 0, width + 2, TIMELINE_HEIGHT);
    c.clip();
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
    const action = view.execution.actions[part.action],
      { x, y, high } = part,
      width = Math.max(part.width, 0.35);
    if (part.lane === 0) {
      c.fillStyle = color(kernel[action.phase]);
      c.fillRect(x, y, width > 2 ? width - 0.5 : width, high);
    } else if (part.lane === 1) {
      action.axes.forEach((name, at) => {
        c.fillStyle = color(`--axis${axisOf(view, name) % 4}`);
        c.fillRect(x, y + (at * high) / action.axes.length, width > 2 ? width - 0.5 : width, high / action.axes.length);
      });
    } else {
      c.save();
      c.beginPath();
      c.rect(x, y, width, high);
      c.clip();
      c.strokeStyle = color('--wait');
      c.lineWidth = 1;
      c.globalAlpha = 0.75;
      c.beginPath();
      for (let line = x - high; line < x + width; line += 4) {
        c.moveTo(line, y + high);
        c.lineTo(line + high, y);
      }
      c.stroke();
      c.restore();
    }
    if (inside.has(action.module) && part.lane !== 2) {
      c.fillStyle = c.strokeStyle = color('--focus');
      c.lineWidth = 1.5;
      if (width > 6) c.strokeRect(x + 0.75, y + 0.75, width - 2, high - 1.5);
      else c.fillRect(x, y + high, width, 2);
    }
  }
  if (current >= 0) {
    const { x, y, width, high } = parts[current];
    c.strokeStyle = color('--ink');
    c.lineWidth = 2;
    c.strokeRect(x - 1, y - 1, Math.max(3, width + 2), high + 2);
  }
}

/** The positions of the selected module and of all in it; none for the whole model. */
function selectedModules(plan) {
  const found = new Set(),
    at = plan.at.get(state.module);
  if (at)
    (function add(at) {
      found.add(at);
      plan.children[at].forEach(add);
    })(at);
  return found;
}
