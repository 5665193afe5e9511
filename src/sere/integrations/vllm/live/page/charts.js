// Two kinds of charts, drawn as SVG in the pixels that they have.
const PAD = { left: 38, right: 8, top: 8, bottom: 22 };
// What lines show at least, so that the first seconds are not drawn as wide as minutes.
const LEAST_S = 120;

function sizeOf(holder) {
  const width = Math.max(240, holder.clientWidth);
  const height = Math.max(100, holder.clientHeight);
  return { width, height, inner: width - PAD.left - PAD.right, deep: height - PAD.top - PAD.bottom };
}

// A round number at or above the largest value, and the steps to it.
function scale(largest) {
  if (!(largest > 0)) return { top: 1, ticks: [0, 1] };
  const power = 10 ** Math.floor(Math.log10(largest / 2));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((one) => one * 5 >= largest) ?? 10 * power;
  const count = Math.max(1, Math.ceil(largest / step - 1e-9));
  return { top: step * count, ticks: Array.from({ length: count + 1 }, (_, i) => i * step) };
}

const short = (value) => (Math.abs(value) >= 10000 ? `${+(value / 1000).toPrecision(3)}k` : `${+value.toPrecision(3)}`);

function grid(size, { top, ticks }, form) {
  return ticks.map((tick) => {
    const y = PAD.top + size.deep * (1 - tick / top);
    return s('g', {}, [
      s('line', { class: tick ? 'grid' : 'axis', x1: PAD.left, x2: size.width - PAD.right, y1: y, y2: y }),
      s('text', { x: PAD.left - 6, y: y + 4, 'text-anchor': 'end' }, form(tick)),
    ]);
  });
}

// Experts by layer: what the router chose behind what is read. Kept, so that bars move.
class LayerBars {
  constructor(holder, note) {
    Object.assign(this, { holder, note, chosen: null, layers: [], key: '' });
    holder.setAttribute('role', 'group');
    holder.setAttribute('tabindex', '0');
    holder.setAttribute('aria-label', 'Experts by layer; arrow keys go from layer to layer');
    this.said = h('p', { class: 'hidden', 'aria-live': 'polite' });
    holder.after(this.said);
    holder.addEventListener('keydown', (event) => {
      const last = this.layers.length - 1;
      const next = {
        ArrowRight: (this.chosen ?? -1) + 1, ArrowLeft: (this.chosen ?? last + 1) - 1, Home: 0, End: last,
      }[event.key];
      if (next === undefined || last < 0) return;
      event.preventDefault();
      this.choose(Math.min(last, Math.max(0, next)));
      this.said.textContent = this.text(this.chosen);
    });
    holder.addEventListener('blur', () => this.choose(null));
  }

  draw(layers, E) {
    this.layers = layers;
    const size = sizeOf(this.holder);
    const axis = scale(Math.max(1, ...layers.map((one) => one.before ?? 0)));
    const key = `${size.width}/${layers.length}/${axis.top}`;
    if (key !== this.key) this.build(size, axis, key);
    layers.forEach((layer, at) => {
      for (const name of ['before', 'after']) {
        const deep = size.deep * ((layer[name] ?? 0) / axis.top);
        const bar = this.bars[at].querySelector(`.bar-${name}`);
        bar.setAttribute('y', size.height - PAD.bottom - deep);
        bar.setAttribute('height', deep);
        bar.dataset.value = layer[name] ?? '';
      }
      write(this.bars[at].querySelector('title'), this.text(at));
    });
    if (this.chosen !== null) write(this.note, this.text(this.chosen));
  }

  build(size, axis, key) {
    this.key = key;
    const wide = size.inner / Math.max(1, this.layers.length);
    const bar = Math.max(1, Math.min(34, wide * 0.72));
    const every = Math.ceil(26 / wide);
    this.bars = this.layers.map((layer, at) => {
      const x = PAD.left + wide * (at + 0.5) - bar / 2;
      const group = s('g', { class: 'bar', 'data-layer': layer.index }, [
        s('title'),
        s('rect', { class: 'hit', x: PAD.left + wide * at, y: PAD.top, width: wide, height: size.deep, fill: 'transparent' }),
        s('rect', { class: 'bar-before', x, width: bar, rx: Math.min(3, bar / 4), y: 0, height: 0 }),
        s('rect', { class: 'bar-after', x, width: bar, rx: Math.min(3, bar / 4), y: 0, height: 0 }),
      ]);
      group.addEventListener('pointerenter', () => this.choose(at));
      group.addEventListener('pointerleave', () => this.choose(null));
      if (at % every) return group;
      group.append(s('text', { x: x + bar / 2, y: size.height - 6, 'text-anchor': 'middle' }, `${layer.index}`));
      return group;
    });
    const drawn = s('svg', { 'aria-hidden': 'true', viewBox: `0 0 ${size.width} ${size.height}` }, [
      ...grid(size, axis, short), ...this.bars,
    ]);
    this.holder.replaceChildren(drawn);
  }

  choose(at) {
    this.chosen = at;
    this.bars?.forEach((bar, index) => bar.classList.toggle('chosen', index === at));
    if (at !== null) write(this.note, this.text(at));
  }

  text(at) {
    const layer = this.layers[at];
    if (layer.before === null) return `Layer ${layer.index}: no step seen`;
    return `Layer ${layer.index}: ${fixed(layer.before, 1)} experts chosen, ${fixed(layer.after, 1)} read, `
      + `${percent(layer.rerouted)} of slots re-routed, ${fixed(layer.critical, 1)} critical`;
  }
}

// Lines from the first point that is kept. `series` name what a point has; gaps stay open.
class Lines {
  constructor(title, series, form) {
    Object.assign(this, { series, form, points: [], at: null });
    this.value = h('span', { class: 'value' });
    this.holder = h('div', { class: 'chart', tabindex: '0', role: 'slider', 'aria-label': `${title} over time` });
    this.figure = h('figure', { 'aria-label': title }, [h('figcaption', {}, [h('b', {}, title), this.value]), this.holder]);
    this.holder.addEventListener('pointermove', (event) => {
      const box = this.holder.getBoundingClientRect();
      this.point(this.from + ((event.clientX - box.left - PAD.left) / this.size.inner) * (this.now - this.from));
    });
    for (const name of ['pointerleave', 'blur']) this.holder.addEventListener(name, () => this.point(null));
    this.holder.addEventListener('keydown', (event) => {
      const at = this.at ?? this.now;
      const next = {
        ArrowRight: at + 10, ArrowUp: at + 10, ArrowLeft: at - 10, ArrowDown: at - 10, Home: this.from, End: this.now,
      }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      this.point(Math.min(this.now, Math.max(this.from, next)));
    });
  }

  point(at) {
    this.at = at;
    if (this.size) this.mark();
  }

  draw(points, now, kept, changes) {
    const first = points.find((p) => !p.gap);
    const wide = Math.min(kept, Math.max(LEAST_S, first ? now - first.at + first.seconds : 0));
    Object.assign(this, { points, now, first, from: now - wide, size: sizeOf(this.holder) });
    const { size, from } = this;
    const x = (at) => PAD.left + size.inner * Math.max(0, (at - from) / wide);
    const values = this.series.flatMap((one) => points.map((p) => (p.gap ? 0 : one.of(p) ?? 0)));
    const axis = scale(Math.max(0, ...values));
    const y = (value) => PAD.top + size.deep * (1 - value / axis.top);
    const parts = [s('defs', {}, s('pattern', {
      id: 'hatch', width: 5, height: 5, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)',
    }, s('line', { class: 'hatch', y2: 5 }))), ...grid(size, axis, this.form.axis)];
    for (const [start, end] of this.unseen()) {
      parts.push(s('rect', { class: 'gap', x: x(start), y: PAD.top, width: Math.max(0, x(end) - x(start)), height: size.deep, opacity: 0.35 }));
    }
    for (const change of changes) {
      if (change.at > from) parts.push(s('line', { class: 'change', x1: x(change.at), x2: x(change.at), y1: PAD.top, y2: PAD.top + size.deep }));
    }
    const step = [1, 2].find((one) => wide <= 180 * one) ?? 5;
    for (let minutes = 0; 60 * minutes <= wide; minutes += step) {
      parts.push(s('text', { x: x(now - 60 * minutes), y: size.height - 5, 'text-anchor': minutes ? 'middle' : 'end' }, minutes ? `−${minutes} min` : 'now'));
    }
    for (const one of this.series) {
      const runs = this.runs(one).map((run) => run.map((p) => `${x(p.at).toFixed(1)} ${y(one.of(p)).toFixed(1)}`));
      if (one.area) {
        const closed = runs.map((run) => `M${run[0].split(' ')[0]} ${y(0)}L${run.join('L')}L${run.at(-1).split(' ')[0]} ${y(0)}Z`);
        parts.push(s('path', { class: 'area', d: closed.join('') }));
      }
      // A single point between two gaps is a dot.
      const d = runs.map((run) => (run.length > 1 ? `M${run.join('L')}` : `M${run[0]}h.01`)).join('');
      parts.push(s('path', { class: `line ${one.look}`, d }));
    }
    this.cross = s('line', { class: 'cross', y1: PAD.top, y2: PAD.top + size.deep, visibility: 'hidden' });
    this.holder.replaceChildren(s('svg', { 'aria-hidden': 'true', viewBox: `0 0 ${size.width} ${size.height}` }, [...parts, this.cross]));
    this.mark();
  }

  // When nobody looked: before the first point, and between two that are far apart.
  unseen() {
    const { points, first, from, now } = this;
    const spans = [[from, first ? first.at - first.seconds : now]];
    for (const p of points) if (p.gap && first && p.at > first.at) spans.push([p.at - p.seconds, p.at]);
    return spans.filter(([start, end]) => end - start > 1);
  }

  runs(one) {
    const runs = [];
    let open = null;
    for (const p of this.points) {
      const value = p.gap ? null : one.of(p);
      if (value === null || value === undefined) { open = null; continue; }
      if (open === null) runs.push(open = []);
      open.push(p);
    }
    return runs;
  }

  mark() {
    const { points, at, size } = this;
    const seen = at === null ? points.at(-1) : points.find((p) => p.at >= at && p.at - p.seconds <= at);
    // The axis moves on; what was chosen at its beginning is shown there.
    const drawn = Math.max(at ?? this.now, this.from);
    const text = (one) => (seen && !seen.gap ? this.form.value(one.of(seen)) : NONE);
    this.value.replaceChildren(
      at === null ? '' : `${clock(at)} `,
      ...this.series.flatMap((one) => [
        h('span', { class: `swatch ${one.look}` }), `${one.name ? `${one.name} ` : ''}${text(one)}`,
      ]),
    );
    // While it has the focus, a screen reader says each new value: only those that arrow keys ask for.
    if (at !== null || document.activeElement !== this.holder) {
      const said = `${at === null ? 'now' : clock(at)}: ${this.series.map((one) => `${one.name} ${text(one)}`).join(', ')}`;
      const values = { valuemin: Math.round(this.from - this.now), valuemax: 0, valuenow: Math.round(drawn - this.now), valuetext: said };
      for (const [name, value] of Object.entries(values)) this.holder.setAttribute(`aria-${name}`, value);
    }
    if (at !== null) {
      const x = PAD.left + (size.inner * (drawn - this.from)) / (this.now - this.from);
      this.cross.setAttribute('x1', x);
      this.cross.setAttribute('x2', x);
    }
    this.cross.setAttribute('visibility', at === null ? 'hidden' : 'visible');
  }
}
