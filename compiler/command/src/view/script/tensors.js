// Values as tensors that the axes of the mesh cut: small next to an operation, large with the piece of every rank.
/** The dimensions that a drawing has room for, innermost first: those that are cut, then the innermost others. */
function drawnDims(type) {
  const dims = type.dims.map((dim, at) => ({ ...dim, at }));
  const useful = dims.filter(dim => dim.axes.length || dim.size > 1);
  const first = [...useful].sort((a, b) => (b.axes.length > 0) - (a.axes.length > 0) || b.at - a.at).slice(0, 3);
  return first.sort((a, b) => b.at - a.at);
}

/** Where a rank's chunk begins and ends in a dimension, as shares of it: each axis cuts the chunk of the one before. */
function chunk(dim, mesh, coords) {
  let from = 0,
    length = dim.size;
  for (const axis of dim.axes) {
    const step = Math.ceil(length / mesh[axis].size),
      start = Math.min(coords[axis] * step, length);
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
  const [w, h, d] = [
    [9, 9, 0],
    [38, 8, 0],
    [36, 19, 0],
    [31, 15, 9],
  ][dims];
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
        const at = (within * i) / pieces;
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
  const dims = drawnDims(type),
    size = boxSize(dims.length, 1, 3, 6);
  const axes = dims.flatMap(dim => dim.axes),
    terms = type.partial;
  const parts = [];
  if (terms) {
    for (const offset of [5, 2.5]) {
      const behind = { ...size, x: size.x + offset, y: size.y - offset };
      parts.push(
        ...box(behind, [0, 1], [0, 1], [0, 1], {
          fill: 'var(--paper)',
          stroke: hue(terms.axes[0]),
          'stroke-width': 0.8,
        }),
      );
    }
  }
  const whole = {
    stroke: 'var(--faint)',
    'stroke-width': 0.7,
    fill: axes.length || terms ? 'var(--whole)' : 'var(--same)',
  };
  parts.push(...box(size, [0, 1], [0, 1], [0, 1], whole));
  if (axes.length) {
    // The piece is as large as the cuts that are drawn, at most an eighth in each direction.
    const piece = (dim, at) =>
      dim ? [0, dim.axes.reduce((p, axis, i) => p / Math.min(view.mesh[axis].size, i || at === 2 ? 4 : 8), 1)] : [0, 1];
    const fill = { fill: hue(axes[0]), 'fill-opacity': 0.75 };
    parts.push(...box(size, piece(dims[0], 0), piece(dims[1], 1), piece(dims[2], 2), fill));
    parts.push(...cuts(size, dims, view.mesh));
  }
  if (terms) {
    const sign = terms.op === 'sum' ? 'Σ' : terms.op;
    parts.push(
      s(
        'text',
        {
          x: 57,
          y: 29,
          'text-anchor': 'end',
          style: { fill: hue(terms.axes[0]), 'font-weight': 700, 'font-size': '10px' },
        },
        sign,
      ),
    );
  }
  return s(
    'svg',
    { class: 'glyph', viewBox: '0 0 58 32', width: 58, height: 32, role: 'img', 'aria-label': type.text },
    parts,
  );
}

/** The text of a type, with its axes in their colors. */
function typeText(view, type) {
  const parts = [type.text.slice(0, type.text.indexOf('['))];
  const axes = list =>
    list.length > 1
      ? ['(', ...list.flatMap((a, i) => [i ? ',' : '', axisName(view, a)]), ')']
      : [axisName(view, list[0])];
  parts.push('[');
  type.dims.forEach((dim, at) =>
    parts.push(at ? ', ' : '', String(dim.size), dim.axes.length ? ['@', ...axes(dim.axes)] : ''),
  );
  parts.push(']');
  if (type.partial) parts.push(` +${type.partial.op}@`, axes(type.partial.axes));
  return parts.flat(3);
}

const axisName = (view, axis) => h('span', { class: 'ax', style: { color: hue(axis) } }, view.mesh[axis].name);

/** The pieces of a value that the ranks hold, as a picture of the mesh, and what each axis does in words. */
function meshDrawing(view, type, caption) {
  const { mesh } = view,
    dims = drawnDims(type);
  const columns = mesh.length ? mesh[mesh.length - 1].size : 1;
  const rows = mesh.slice(0, -1).reduce((n, axis) => n * axis.size, 1);
  const [w, hgt, left, top] = [46, 31, mesh.length > 1 ? 58 : 4, mesh.length ? 14 : 2];
  const [wide, high] = [Math.min(columns, 8), Math.min(rows, 8)];
  const parts = [];
  for (let r = 0; r < high; r++) {
    const coords = [];
    let rest = r;
    for (let a = mesh.length - 2; a >= 0; a--) {
      coords[a] = rest % mesh[a].size;
      rest = Math.floor(rest / mesh[a].size);
    }
    if (mesh.length > 1) {
      const words = mesh
        .slice(0, -1)
        .map((axis, a) => `${axis.name}=${coords[a]}`)
        .join(' ');
      parts.push(s('text', { x: left - 8, y: top + r * hgt + 20, 'text-anchor': 'end' }, words));
    }
    for (let c = 0; c < wide; c++) {
      if (mesh.length) coords[mesh.length - 1] = c;
      if (r === 0 && mesh.length)
        parts.push(
          s('text', { x: left + c * w + 18, y: 9, 'text-anchor': 'middle' }, `${mesh[mesh.length - 1].name}=${c}`),
        );
      const size = boxSize(dims.length, 0.95, left + c * w, top + r * hgt + 2);
      const share = dim => (dim ? chunk(dim, mesh, coords) : [0, 1]);
      const [x, y, z] = [share(dims[0]), share(dims[1]), share(dims[2])];
      parts.push(
        ...box(size, [0, 1], [0, 1], [0, 1], { fill: 'var(--whole)', stroke: 'var(--faint)', 'stroke-width': 0.6 }),
      );
      if ([x, y, z].every(([from, to]) => to > from)) {
        const axes = dims.flatMap(dim => dim.axes);
        const fill = axes.length ? hue(axes[0]) : 'var(--same)';
        parts.push(...box(size, x, y, z, { fill, stroke: fill, 'stroke-width': 0.4, 'fill-opacity': 0.8 }));
      }
      if (type.partial)
        parts.push(
          s(
            'text',
            { x: left + c * w + 17, y: top + r * hgt + 20, 'text-anchor': 'middle', class: 'strong' },
            `+${subscript(type.partial.axes.map(a => coords[a] ?? 0))}`,
          ),
        );
    }
  }
  const says = mesh.map((axis, a) => {
    if (type.partial?.axes.includes(a))
      return [axisName(view, a), `: each of ${axis.size} ranks holds one term of the ${type.partial.op}`];
    const at = type.dims.findIndex(dim => dim.axes.includes(a));
    if (at >= 0) return [axisName(view, a), `: dimension ${at} in ${axis.size} pieces`];
    return [axisName(view, a), `: the same on all ${axis.size}`];
  });
  const more = columns > wide || rows > high ? ` The first ${wide * high} of ${columns * rows} ranks are drawn.` : '';
  return h(
    'figure',
    {},
    h(
      'figcaption',
      {},
      caption,
      ' ',
      h('span', { class: 'mono' }, typeText(view, type)),
      ` · ${bytes(type.bytes)} on the first rank`,
      says.map(parts => [' · ', ...parts]),
      '.',
      more,
    ),
    s(
      'svg',
      {
        width: left + wide * w + 6,
        height: top + high * hgt + 2,
        role: 'img',
        'aria-label': `the mesh with the pieces of ${type.text}`,
      },
      parts,
    ),
  );
}
const subscript = numbers => numbers.join(' ').replace(/\d/g, digit => '₀₁₂₃₄₅₆₇₈₉'[digit]);
