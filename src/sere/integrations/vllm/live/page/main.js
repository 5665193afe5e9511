// Asks once a second while the page can be seen, and says so when nobody answers.
const WAIT_MS = 1000;
const MOST_MS = 5000;
const HANGS_MS = 10000;
let key = '';
let points = [];
let lastSeen = null;
let run = null;

const serverKey = () => (key ? { Authorization: `Bearer ${asHeader(key)}` } : {});

const poll = {
  timer: null, failed: 0, running: false,

  soon(wait = 0) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.once(), wait);
  },

  async once() {
    if (this.running || document.hidden) return;
    this.running = true;
    try {
      await look();
      this.failed = 0;
    } catch (error) {
      this.failed += 1;
      lost(error);
    } finally {
      this.running = false;
    }
    this.soon(Math.min(MOST_MS, WAIT_MS * (1 + this.failed)));
  },
};

class Refused extends Error {}

async function look() {
  const before = answered;
  const since = points.length ? points.at(-1).at : 0;
  const sent = key;
  const answer = await fetch(`../v1/sere/live?since=${since}`, { headers: serverKey(), cache: 'no-store', signal: AbortSignal.timeout(HANGS_MS) });
  // A question without the key that has been typed since says nothing of that key.
  if (answer.status === 401) { if (key === sent) askForKey(); return; }
  if (!answer.ok) {
    const given = await answer.json().catch(() => ({}));
    throw new Refused(`The server answers ${answer.status}: ${given.error ?? answer.statusText}`);
  }
  const given = await answer.json();
  if (answered !== before) { await look(); return; }
  // A server that was started again has points of its own only, which are all asked for.
  if (given.now.run !== run) {
    run = given.now.run;
    if (points.length) { points = []; await look(); return; }
  }
  points = [...points, ...given.points].filter((p) => p.at >= given.now.at - given.now.kept_s);
  lastSeen = given.now.at;
  document.body.classList.remove('stale');
  show(byId('banner'), false);
  const asked = byId('key-form').contains(document.activeElement);
  show(byId('key-form'), false);
  show(byId('main'), true);
  // Who has just typed the key goes on from the figures, not from the top of the page.
  if (asked) byId('main').focus();
  showSteering(given.now, given.read_only);
  showAll(given.now, points);
}

function lost(error) {
  const seen = lastSeen === null ? 'Nothing has been seen yet.' : `Last seen at ${clock(lastSeen)}.`;
  const hangs = error.name === 'TimeoutError';
  const silent = hangs ? `The server has not answered for ${HANGS_MS / 1000} s.` : 'The server does not answer. Is it stopped?';
  const what = error instanceof Refused ? error.message : silent;
  write(byId('banner'), `${what} ${seen}`);
  show(byId('banner'), true);
  document.body.classList.add('stale');
  showState('lost', error instanceof Refused ? 'No figures' : hangs ? 'No answer' : 'Server stopped');
}

function askForKey() {
  showState('', 'Key needed');
  show(byId('main'), false);
  if (byId('key-form').hidden) {
    show(byId('key-form'), true);
    byId('server-key').focus();
  }
  if (key) {
    write(byId('banner'), 'The server does not accept this key.');
    show(byId('banner'), true);
    key = '';
  }
}

byId('key-form').addEventListener('submit', (event) => {
  event.preventDefault();
  key = byId('server-key').value;
  show(byId('banner'), false);
  poll.soon();
});
document.addEventListener('visibilitychange', () => poll.soon());
new ResizeObserver(() => { if (looked.now) showAll(looked.now, points); }).observe(document.body);
byId('layers-table').closest('details').addEventListener('toggle', () => { if (looked.now) showLayers(looked.now); });
poll.soon();
