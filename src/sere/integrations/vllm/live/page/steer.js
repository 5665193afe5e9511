// Changes, for those who have the operator's key. The server decides; this shows what it says.
let looked = { now: null, busy: false };
// How many changes have been answered: what was asked for before the last of them may show what was before it.
let answered = 0;

// A header takes bytes: a key with other letters is sent as UTF-8.
const asHeader = (key) => String.fromCharCode(...new TextEncoder().encode(key));

async function send(path, body, done) {
  if (looked.busy) return;
  looked.busy = true;
  write(byId('answer'), '');
  write(byId('refusal'), '');
  try {
    const answer = await fetch(`../v1/sere/${path}`, {
      method: 'POST', body: JSON.stringify(body),
      headers: { ...serverKey(), 'Content-Type': 'application/json', 'X-Sere-Admin-Key': asHeader(byId('admin-key').value) },
    });
    const given = await answer.json().catch(() => ({}));
    if (answer.ok) write(byId('answer'), `${clock(Date.now() / 1000)}: ${done(given)}`);
    else write(byId('refusal'), `Refused (${answer.status}): ${given.error ?? answer.statusText}`);
  } catch (error) {
    write(byId('refusal'), `The server did not answer: ${error.message}`);
  } finally {
    looked.busy = false;
    answered += 1;
  }
  poll.soon();
}

const change = (name, value) => send('settings', { [name]: value }, (given) => {
  // At once, so that whoever presses the switch again gets the other state.
  if (name === 'enabled') showSwitch(given.enabled);
  return `${NAMES[name]}: ${typed(given[name], name)}`;
});

const isOn = () => byId('switch').getAttribute('aria-checked') === 'true';
const showSwitch = (on) => byId('switch').setAttribute('aria-checked', String(on));

// What was typed as JSON has it; what has none of the forms is sent as it is, and refused with the forms.
function activeExperts(text) {
  const given = text.trim();
  if (given !== '' && Number.isFinite(Number(given))) {
    return Number(given);
  }
  if (/^\d+-\d+(\/\d+-\d+)*$/.test(given)) return given.split('/').map((pair) => pair.split('-').map(Number));
  return given;
}

function onEnter(input, button) {
  byId(input).addEventListener('keydown', (event) => {
    if (event.key === 'Enter') { event.preventDefault(); byId(button).click(); }
  });
}

byId('switch').addEventListener('click', () => change('enabled', !isOn()));
byId('set-tier').addEventListener('click', () => change('tier', byId('tier').value));
byId('set-active').addEventListener('click', () => change('active_experts', activeExperts(byId('active').value)));
byId('set-top').addEventListener('click', () => change('select_top_k', Number(byId('top').value)));
byId('reset').addEventListener('click', () => send('reset', {}, () => 'all counters are zero'));
byId('steer').addEventListener('submit', (event) => event.preventDefault());
onEnter('active', 'set-active');
onEnter('top', 'set-top');
byId('admin-key').addEventListener('input', () => showControls());

function showControls() {
  const refused = looked.readOnly;
  write(byId('read-only'), refused ?? '');
  show(byId('read-only'), Boolean(refused));
  show(byId('steer'), !refused);
  byId('controls').disabled = !byId('admin-key').value;
}

let tiersShown = null;
function showSteering(now, readOnly) {
  looked = { ...looked, now, readOnly };
  showControls();
  showSwitch(now.enabled);
  const { tiers } = now.table;
  const key = tiers.join('/');
  if (key !== tiersShown) {
    tiersShown = key;
    byId('tier').replaceChildren(...tiers.map((name) => h('option', { value: name }, name)));
    byId('tier').dataset.current = '';
  }
  show(byId('tier-row'), tiers.length > 0);
  // What somebody is about to choose or to type stays.
  const { tier } = now.settings;
  if (tiers.includes(tier) && byId('tier').dataset.current !== tier && document.activeElement !== byId('tier')) {
    byId('tier').value = tier;
    byId('tier').dataset.current = tier;
  }
  for (const [id, name] of [['active', 'active_experts'], ['top', 'select_top_k']]) {
    const current = typed(now.settings[name]);
    if (byId(id).dataset.current !== current && document.activeElement !== byId(id)) {
      byId(id).value = current;
      byId(id).dataset.current = current;
    }
  }
}
