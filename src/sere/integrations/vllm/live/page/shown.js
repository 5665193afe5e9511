// What the page shows of one answer.
const KINDS = {
  rerouted: 're-routed', mixed: 'mixed with prompts', few_rows: 'few rows, exact', prompts: 'prompts only',
  protected: 'all experts kept', disabled: 'switched off', unknown: 'rows unknown',
};
const NAMES = {
  tier: 'tier', active_experts: 'experts a step may read (M)', select_top_k: 'slots that keep theirs (S)',
  threshold: 'threshold (ρ)', min_gain: 'least gain (τ)', enabled: 're-routing', count_only: 'count only',
  layers: 'settings of single layers', keep: 'experts that are kept',
};
const SHOWN = ['tier', 'active_experts', 'select_top_k', 'threshold', 'min_gain'];

// A setting as it is typed.
function typed(value, name) {
  if (value === null || value === undefined) return 'none';
  if (name === 'enabled') return value ? 'on' : 'off';
  if (name === 'active_experts' && value === 0) return '0 (no limit by M)';
  if (Array.isArray(value) && Array.isArray(value[0])) return value.map((pair) => pair.join('-')).join('/');
  if (typeof value === 'number' && !Number.isInteger(value)) return String(+value.toPrecision(6));
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}

class Tile {
  constructor(title) {
    this.big = h('p', { class: 'big' });
    this.under = h('p', { class: 'under' });
    this.element = h('article', { class: 'tile', 'aria-label': title }, [h('h2', {}, title), this.big, this.under]);
  }

  set(value, unit, under) {
    const text = unit ? `${value} ${unit}` : value;
    if (this.big.textContent !== text) this.big.replaceChildren(value, ...(unit ? [' ', h('small', {}, unit)] : []));
    write(this.under, under);
  }
}

const TILES = {
  experts: new Tile('Experts per layer'),
  bytes: new Tile('Weights not read'),
  slots: new Tile('Slots re-routed'),
  rows: new Tile('Rows per step'),
  critical: new Tile('Critical experts'),
  speedup: new Tile('Decoding, estimated'),
};

byId('tiles').append(...Object.values(TILES).map((tile) => tile.element));

function showTiles(now) {
  const { recent } = now;
  const less = recent.before ? 1 - recent.after / recent.before : null;
  const steps = Object.values(recent.steps).reduce((a, b) => a + b, 0);
  TILES.experts.set(
    recent.before === null ? NONE : `${fixed(recent.before, 1)} → ${fixed(recent.after, 1)}`, '',
    recent.before === null ? 'no step seen yet' : `${percent(less)} fewer per step, of ${now.num_experts}`);
  const rate = recent.seconds ? bytes(recent.bytes === null ? null : recent.bytes / recent.seconds) : bytes(recent.bytes);
  TILES.bytes.set(rate[0], rate[0] === NONE ? '' : rate[1] + (recent.seconds ? '/s' : ''),
    now.expert_bytes ? `per worker; one expert is ${bytes(now.expert_bytes).join(' ')}` : 'size of an expert not known');
  TILES.slots.set(percent(recent.rerouted, 1), '', 'of the decoded rows’ slots');
  TILES.rows.set(fixed(recent.rows, 1), '', recent.seconds ? `${fixed(steps / recent.seconds, 1)} steps per second` : 'since the last reset');
  TILES.critical.set(fixed(recent.critical, 1), '', 'kept, per layer and step');
  const speedup = now.estimate.speedup;
  TILES.speedup.set(speedup === null ? NONE : `up to ${speedup.toFixed(2)}×`, '',
    speedup === null ? 'sizes not known' : now.estimate.basis === 'times' ? 'from predicted times, not measured' : 'from bytes, not measured');
  write(byId('caveat'), `Decoding, estimated: ${now.estimate.caveat}`);
}

const bars = new LayerBars(byId('layers'), byId('layers-when'));
const numbers = { axis: short, value: (value) => fixed(value, 1) };
const shares = { axis: (value) => `${+(100 * value).toPrecision(3)}%`, value: (value) => percent(value, 1) };
const rates = {
  axis: (value) => bytes(value, (left) => `${+left.toPrecision(3)}`).join('').slice(0, -1),
  value: (value) => (value === null ? NONE : `${bytes(value).join(' ')}/s`),
};
// What is not known stays so.
const perSecond = (of) => (p) => (of(p) === null ? null : of(p) / Math.max(p.seconds, 0.5));
const lines = [
  new Lines('Experts', [
    { name: 'chosen', look: 'l-before', of: (p) => p.before },
    { name: 'read', look: 'l-after', area: true, of: (p) => p.after },
  ], numbers),
  new Lines('Weights not read', [{ name: '', look: 'l-after', area: true, of: perSecond((p) => p.bytes) }], rates),
  new Lines('Rows per step', [{ name: '', look: 'l-after', area: true, of: (p) => p.rows }], numbers),
  new Lines('Slots re-routed', [{ name: '', look: 'l-after', area: true, of: (p) => p.rerouted }], shares),
  new Lines('Critical experts', [{ name: '', look: 'l-after', area: true, of: (p) => p.critical }], numbers),
  new Lines('Steps per second', [
    { name: 're-routed', look: 'l-after', area: true, of: perSecond((p) => p.steps.rerouted ?? 0) },
    { name: 'others', look: 'l-second', of: perSecond((p) => Object.entries(p.steps).reduce((sum, [kind, n]) => sum + (kind === 'rerouted' ? 0 : n), 0)) },
  ], numbers),
];

byId('lines').append(...lines.map((line) => line.figure));

function showLayers(now) {
  const { seconds } = now.recent;
  if (bars.chosen === null) {
    write(byId('layers-when'), seconds ? `Means of the last ${Math.max(1, Math.round(seconds))} s`
      : `No step in the last ${now.window_s} s: means since the last reset`);
  }
  bars.draw(now.layers, now.num_experts);
  const unseen = now.unseen;
  const named = unseen.slice(0, 10).join(', ') + (unseen.length > 10 ? ` and ${unseen.length - 10} more` : '');
  const notes = [];
  if (unseen.length && unseen.length < now.layers.length) notes.push(`Never saw a step: layer ${named}.`);
  if (unseen.length && unseen.length === now.layers.length) notes.push('No layer has seen a step yet.');
  if (now.nothing_changed) notes.push(now.nothing_changed[0].toUpperCase() + now.nothing_changed.slice(1));
  write(byId('layers-note'), notes.join(' '));
  show(byId('layers-note'), notes.length > 0);
  if (!byId('layers-table').closest('details').open) return;
  const head = ['Layer', 'Chosen', 'Read', 'Slots re-routed', 'Critical', 'Rows', 'Steps'];
  byId('layers-table').replaceChildren(
    h('caption', { class: 'hidden' }, 'Means per step of each layer'),
    h('thead', {}, h('tr', {}, head.map((name) => h('th', { scope: 'col' }, name)))),
    h('tbody', {}, now.layers.map((one) => h('tr', {}, [
      `${one.index}`, fixed(one.before, 2), fixed(one.after, 2), percent(one.rerouted, 1), fixed(one.critical, 2),
      fixed(one.rows, 1), whole(one.steps),
    ].map((cell) => h('td', {}, cell))))),
  );
}

function showSteps(now) {
  const order = Object.keys(KINDS);
  const total = order.reduce((sum, kind) => sum + now.steps[kind], 0);
  const parts = order.filter((kind) => now.steps[kind]);
  byId('steps-bar').replaceChildren(...parts.map((kind) => {
    const part = h('i', { class: `k${order.indexOf(kind)}` });
    part.style.flex = `${now.steps[kind]} 0 0`;
    return part;
  }));
  const text = (kind) => `${whole(now.steps[kind])} (${percent(now.steps[kind] / total)})`;
  byId('steps-bar').setAttribute('aria-label', parts.map((kind) => `${KINDS[kind]} ${text(kind)}`).join(', ') || 'no steps');
  const tiers = Object.entries(now.steps_by_tier).flatMap(([name, count]) => [
    h('dt', {}, `asked for tier ${name}`), h('dd', {}, whole(count)),
  ]);
  byId('steps').replaceChildren(...(parts.length ? parts : ['rerouted']).flatMap((kind) => [
    h('dt', {}, [h('span', { class: `key k${order.indexOf(kind)}` }), KINDS[kind]]),
    h('dd', {}, total ? text(kind) : '0'),
  ]), ...tiers);
}

function showSettings(now) {
  const own = Object.keys(now.settings.layers ?? {}).length;
  const most = now.layers.length ? now.layers[0].most : [];
  const span = (at) => {
    const all = now.layers.map((layer) => layer.most[at][1]);
    const [least, largest] = [Math.min(...all), Math.max(...all)];
    return least === largest ? `${least}` : `${least} to ${largest}`;
  };
  const pairs = [
    ...SHOWN.filter((name) => name in now.settings).map((name) => [NAMES[name], typed(now.settings[name], name)]),
    ...(own ? [['layers with own settings', `${own}`]] : []),
    ...most.map(([rows], at) => [rows, at]).filter(([rows]) => [8, 32, 128].includes(rows))
      .map(([rows, at]) => [`M for ${rows} rows`, span(at)]),
    ['model', `${now.layers.length} layers, ${now.num_experts} experts, ${now.top_k} per row`],
    ['table', now.table.fingerprint || NONE],
    ['its tiers', now.table.tiers.join(', ') || 'none'],
    ['expert kernel', now.kernel ?? 'not known'],
  ];
  byId('settings').replaceChildren(...pairs.flatMap(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]));
}

let changesShown = null;
function showChanges(now) {
  const key = JSON.stringify(now.changes);
  if (key === changesShown) return;
  changesShown = key;
  const texts = (what) => (what === 'reset' ? ['counters set to zero']
    : Object.entries(what).map(([name, [old, fresh]]) => `${NAMES[name] ?? name}: ${typed(old, name)} → ${typed(fresh, name)}`));
  const when = (one) => (one.at - one.after > now.gap_s ? `between ${clock(one.after)} and ${clock(one.at)}` : clock(one.at));
  byId('changes').replaceChildren(...(now.changes.length ? now.changes.map((one) => h('li', {}, [
    h('time', { datetime: new Date(1000 * one.at).toISOString() }, when(one)),
    ...texts(one.what).map((text) => h('div', {}, text)),
  ])) : [h('li', { class: 'hint' }, 'Nothing since this server was first looked at.')]));
}

// Each server process keeps its own history: after this one, another may answer.
function showProcesses(now) {
  const count = now.server_processes;
  write(byId('processes'), count > 1 ? `From 1 of ${count} server processes: another one has other lines and changes.` : '');
  show(byId('processes'), count > 1);
}

function showState(look, text) {
  byId('state').className = `pill ${look}`;
  write(byId('state-text'), text);
}

function showAll(now, points) {
  showTiles(now);
  showLayers(now);
  for (const line of lines) line.draw(points, now.at, now.kept_s, now.changes);
  showSteps(now);
  showSettings(now);
  showChanges(now);
  showProcesses(now);
  if (now.count_only) showState('counting', 'Only counting');
  else if (now.enabled) showState('on', now.settings.tier ? `On, tier ${now.settings.tier}` : 'On');
  else showState('', 'Off');
  write(byId('model'), now.title ?? 'expert re-routing');
  document.title = `sere ${now.title ?? ''}`.trim();
}
