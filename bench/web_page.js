// Measures in a page of the web UI; bench/web_page.py says FIRST and WAIT_MS.
const first = () => document.querySelector(FIRST)?.textContent;
/** Say when something is so and about to be painted. */
const whenShown = (so) => new Promise((done, fail) => {
  setTimeout(() => fail(new Error(`not within ${WAIT_MS} ms: ${so}`)), WAIT_MS);
  const seen = () => requestAnimationFrame(done);
  if (so()) return seen();
  const observer = new MutationObserver(() => {
    if (!so()) return;
    observer.disconnect();
    seen();
  });
  observer.observe(document, { subtree: true, childList: true, characterData: true });
});
window.ncLcp = window.ncMessages = 0;
window.WebSocket = class extends WebSocket {
  constructor(...where) {
    super(...where);
    this.addEventListener("message", () => { window.ncMessages += 1; });
  }
};
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.ncLcp = entry.startTime;
}).observe({ type: "largest-contentful-paint", buffered: true });
/** The milliseconds from the next event of a type until something is so and shown. */
window.ncUntil = (type, so) => {
  let began = null;
  addEventListener(type, () => { began ??= performance.now(); }, { capture: true, once: true });
  window.ncMeasured = whenShown(() => began !== null && so()).then(() => performance.now() - began);
};
window.ncAfter = (type, name) => window.ncUntil(type, () => first() === name);
/** When, since 1970, a row of this name is shown. */
window.ncSeen = (name) => {
  const there = () => [...document.querySelectorAll(".nc-body-row a")].some((link) => link.textContent === name);
  window.ncMeasured = whenShown(there).then(() => Date.now());
};
window.ncEchoed = () => {
  const rows = document.querySelector(".xterm-rows");
  const before = rows.textContent;
  window.ncUntil("keydown", () => rows.textContent !== before);
};
/** Scroll the list for so long: frames a second, and the longest wait for one in milliseconds. */
window.ncScroll = (lasts) => new Promise((done) => {
  const table = document.querySelector(".nc-table");
  let began = null, before = 0, frames = 0, longest = 0;
  const frame = (now) => {
    began ??= before = now;
    longest = Math.max(longest, now - before);
    before = now;
    if (now - began >= lasts) return done([1000 * frames / (now - began), longest]);
    frames += 1;
    table.scrollTop = (table.scrollTop + 30) % Math.max(1, table.scrollHeight - table.clientHeight);
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
});
