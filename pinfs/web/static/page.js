// Shows the pictures of pinfs/web/look.py as they come. Texts only ever become text nodes.

const RETRY_MS = 3000; // after the server has refused the stream
const SILENCE_MS = 10000; // longest time without a picture
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);
const shown = new Map(); // part of the page -> what it was made from
let behind_ms = 0; // this clock, relative to the server's
let lastPicture = performance.now();

function el(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.filter((child) => child !== null).map((child) => child instanceof Node ? child : String(child)));
  return element;
}

// A part is replaced only when its data changes, so that a selection of text survives.
function show(id, data, make) {
  const key = JSON.stringify(data);
  if (shown.get(id) === key) return;
  shown.set(id, key);
  byId(id).replaceChildren(...make(data));
}

const number = (value) => value.toLocaleString("en");
const more = (count, what) => count ? [el("p", "more", `… and ${number(count)} more ${what}`)] : [];

function bytes(count) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return `${unit && count < 100 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

function duration(seconds) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const at = parts.findIndex(([size]) => seconds >= size);
  if (at < 0) return "0 s";
  const [size, unit] = parts[at];
  const rest = parts[at + 1];
  const first = `${Math.floor(seconds / size)} ${unit}`;
  return rest ? `${first} ${Math.floor(seconds % size / rest[0])} ${rest[1]}` : first;
}

// In numbers

function tile(value, what, hot) {
  return el("div", hot ? "tile hot" : "tile", el("b", "", value), el("span", "", what));
}

function tiles({ status, counters }) {
  const counted = (name) => counters[`pinfs_${name}`] ?? 0;
  return [
    tile(number(status.pins), "pins"),
    tile(bytes(counted("pinned_bytes")), "pinned"),
    tile(number(status.waiting), "breakers waiting", status.waiting > 0),
    tile(number(counted("breaks_started_total")), "breaks"),
    tile(number(counted("breaks_timed_out_total")), "of them timed out"),
    tile(number(counted("refusals_total")), "removals refused"),
    status.seal ? tile(number(status.sealed_files), "sealed files") : tile("no", "seals"),
    tile(status.passthrough ? "yes" : "no", "passthrough"),
  ];
}

// Files

function bar(file) {
  const svg = document.createElementNS(SVG, "svg");
  const attributes = { viewBox: "0 0 1000 20", preserveAspectRatio: "none", class: "bar", role: "img" };
  for (const [name, value] of Object.entries(attributes)) svg.setAttribute(name, value);
  svg.setAttribute("aria-label", `${number(file.count)} pins, listed below`);
  for (const [from, to, kind] of file.bar) {
    const rect = document.createElementNS(SVG, "rect");
    rect.setAttribute("class", kind);
    rect.setAttribute("x", Math.min(from, 997));
    rect.setAttribute("width", Math.max(to - from, 3));
    rect.setAttribute("height", 20);
    svg.append(rect);
  }
  return svg;
}

function countdown(deadline) {
  const left = el("span", "left");
  left.dataset.deadline = deadline;
  return left;
}

function holder(pin) {
  if (pin.uid === undefined) return el("span", "soft", "another user");
  const process = pin.pid === undefined ? "a handle" : `${pin.comm ?? "?"} (${pin.pid})`;
  return el("span", "", el("span", "mono", process), el("span", "soft", ` uid ${pin.uid}`));
}

function age(pin) {
  const cell = el("td", "number");
  if (pin.since !== undefined) cell.dataset.since = pin.since;
  return cell;
}

function pathOf(one) {
  return one.path ?? `inode ${one.inode}, without a name`;
}

// `first`: the cells that say what the group does not: the file, the holder, or both.
function pinRow(pin, first) {
  const kind = pin.state === "breaking" ? "breaking" : pin.mode;
  const end = pin.length ? number(pin.start + pin.length) : "end";
  const mode = el("span", `mode ${pin.mode}`, pin.mode);
  return el("tr", kind,
    el("td", "number", pin.id),
    el("td", "number", `${number(pin.start)} – ${end}`),
    el("td", "number", mode, ...(pin.deadline ? [" ", countdown(pin.deadline)] : [])),
    ...first.map((cell) => cell(pin)),
    age(pin),
    el("td", "note", pin.note ?? ""));
}

const fileCell = (pin) => el("td", "", el("span", "path", pathOf(pin)));
const holderCell = (pin) => el("td", "", holder(pin));

// A table that is wider than the screen is scrolled, also by keys.
function table(className, headings, rows, name) {
  const head = el("tr", "", ...headings.map((heading) => {
    const cell = el("th", "", heading);
    cell.scope = "col";
    return cell;
  }));
  const element = el("table", "", ...(headings.length ? [el("thead", "", head)] : []), el("tbody", "", ...rows));
  const around = el("div", `table ${className}`, element);
  around.tabIndex = 0;
  around.setAttribute("role", "group");
  around.setAttribute("aria-label", name);
  return around;
}

function pinTable(pins, headings, cells, name) {
  return table("pins", ["Pin", "Bytes", "Mode", ...headings, "Age", "Note"], pins.map((pin) => pinRow(pin, cells)), name);
}

function file(one) {
  const size = one.size === null ? [] : [bytes(one.size)];
  const facts = [`${number(one.count)} ${one.count === 1 ? "pin" : "pins"}`, ...size, ...(one.sealed ? ["sealed"] : [])];
  return el("article", "file",
    el("h3", "", el("span", "path", pathOf(one)), el("span", "soft", facts.join(", "))),
    bar(one),
    el("div", "axis", el("span", "", "0"), el("span", "", number(one.extent))),
    pinTable(one.pins, ["Holder"], [holderCell], `Pins of ${pathOf(one)}`),
    ...more(one.more, "pins of this file"));
}

function holderName(one) {
  if (one.uid === null) return "other users";
  return one.pid === null ? `handles of uid ${one.uid}` : `${one.comm || "?"} (${one.pid}), uid ${one.uid}`;
}

function size(one) {
  const some = one.bytes ? bytes(one.bytes) : "";
  return one.open_ended ? (some ? `${some} and more` : "to the end") : some;
}

function group({ holder: one, pins, more: count }) {
  const facts = [`${number(one.pins)} ${one.pins === 1 ? "pin" : "pins"}`, size(one),
    `${number(one.files)} ${one.files === 1 ? "file" : "files"}`];
  return el("article", "file",
    el("h3", "", el("span", "path", holderName(one)), el("span", "soft", facts.join(", "))),
    pinTable(pins, ["File"], [fileCell], `Pins of ${holderName(one)}`),
    ...more(count, "pins of this holder"));
}

function pins(found) {
  if (!found.selected) return [el("p", "empty", asked.find || asked.show !== "all" ? "No pin is as you search." : "Nothing is pinned.")];
  if (found.by === "holder") return [...found.groups.map(group), ...more(found.more, "holders")];
  if (found.by === "age") {
    return [pinTable(found.pins, ["File", "Holder"], [fileCell, holderCell], "The oldest pins"), ...more(found.more, "pins")];
  }
  return [...found.files.map(file), ...more(found.more, "files")];
}

// Breaks

function waitsFor(one) {
  const names = one.holders.map((by) => `${by.comm || "?"} (${by.pid})`);
  const numbers = one.waits_for.join(", ") + (one.more ? "…" : "");
  if (!one.waits_for.length) return [el("span", "soft", "an earlier removal, or another host")];
  return [el("span", "mono", names.join(", ")), el("span", "soft", `${names.length ? " " : ""}pin ${numbers}`)];
}

function breakRow(one) {
  const end = one.to === null ? "end" : number(one.to);
  const by = one.host ? `host ${one.host}` : one.pid === null ? "another user" : `${one.comm ?? "?"} (${one.pid})`;
  return el("tr", "breaking",
    el("td", "number", ...(one.deadline ? [countdown(one.deadline)] : [])),
    el("td", "", el("b", "", one.op), " ", el("span", "path", pathOf(one)), el("span", "soft", ` ${number(one.from)} – ${end}`)),
    el("td", "mono", by),
    el("td", "", ...waitsFor(one)));
}

function breaks({ breaks: list, more: count, in_kernel: inKernel }) {
  const shown = list.length
    ? [table("", ["Left", "Removal", "Breaker", "Waits for"], list.map(breakRow), "Breaks under way")] : [];
  return [...shown, ...more(count, "removals"), ...inKernel.map((words) => el("p", "notice", words))];
}

// The side

function event(one) {
  const time = el("time", "", new Date(one.at * 1000).toLocaleTimeString("en-GB"));
  return el("li", one.event, time, el("b", "", one.event), " ", el("span", "words", one.words));
}

function events(list) {
  if (!list.length) return [el("li", "", el("span", "empty", "Nothing yet."))];
  return list.toReversed().map(event);
}

function holders({ holders, more: count }) {
  if (!holders.length) return [el("p", "empty", "None.")];
  const row = (one) => el("tr", one.breaking ? "breaking" : "",
    el("td", "mono", one.pid ?? "–"),
    el("td", "", one.uid === null ? el("span", "soft", "other users") : one.comm || el("span", "soft", "a handle")),
    el("td", "number", one.uid ?? "–"),
    el("td", "number", number(one.pins)),
    el("td", "number", size(one)));
  return [table("", ["Pid", "Command", "Uid", "Pins", "Size"], holders.map(row), "Holders"), ...more(count, "holders")];
}

function hosts({ hosts: list, more: count, words }) {
  const row = (one) => el("tr", one.silent_s > one.pin_ttl_s ? "breaking" : "",
    el("td", "mono", one.own ? `${one.host} (this)` : one.host),
    el("td", "number", one.silent_s === null ? "–" : `${Math.round(one.silent_s)} s`));
  return [el("p", "", words), table("", ["Host", "Silent for"], list.map(row), "Hosts"), ...more(count, "hosts")];
}

function life({ status, missing }) {
  const facts = [
    ["take-overs", number(status.takeovers ?? 0)],
    ["life", status.life || "ends with its daemon"],
    ["seals", status.seal ? `yes: ${number(status.sealed_files)} sealed files` : missing("seal")],
    ["passthrough", status.passthrough ? "yes" : missing("passthrough")],
    ["bridge", status.bridge ? "yes" : missing("bridge")],
  ];
  return [table("", [], facts.map(([key, value]) => el("tr", "", rowHead(key), el("td", "", value))), "This mount")];
}

function rowHead(words) {
  const cell = el("th", "soft", words);
  cell.scope = "row";
  return cell;
}

const values = (pairs) => pairs.map(([key, value]) => el("tr", "", rowHead(key), el("td", "mono", value)));

function policy({ values: own, rules, more: count }) {
  const rule = (one) => el("div", "rule", "for ", el("span", "path", one.path), table("", [], values(one.values), `Policy for ${one.path}`));
  return [table("", [], values(own), "Policy of the mount"), ...rules.map(rule), ...more(count, "rules")];
}

// The whole page

function footer({ status, sees_all, read }) {
  const seen = sees_all ? "" : " Holders of other users' pins are not shown, and breaks only if they last a second.";
  const part = read < status.pins ? ` Files and holders are those of the first ${number(read)} pins.` : "";
  const life = status.life ? ` The mount ${status.life}.` : "";
  const cluster = status.cluster ? ` Cluster ${status.cluster}.` : "";
  const missing = (what) => {
    const why = status[`${what}_unavailable_because`];
    return why ? ` No ${what}: ${why}.` : "";
  };
  const lacks = missing("passthrough") + missing("seal");
  return [`${status.source}, served by process ${status.pid} (pinfs ${status.version}).${life}${cluster}${lacks}${part}${seen}`];
}

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

function state(className, text) {
  byId("state").className = `state ${className}`;
  if (byId("state").textContent !== text) byId("state").textContent = text;
}

function draw(picture) {
  lastPicture = performance.now();
  behind_ms = picture.at * 1000 - Date.now();
  byId("mount").textContent = picture.mount;
  document.title = `pinfs ${picture.mount}`;
  show("events", picture.events, events);
  if (picture.error) {
    state("bad", "not mounted");
    notice(`The mount does not answer: ${picture.error}. The page shows the last known state.`);
    return;
  }
  notice("");
  state("", `up for ${duration(picture.status.uptime_s)}`);
  show("tiles", { status: { ...picture.status, uptime_s: 0, descriptors: 0 }, counters: picture.counters }, tiles);
  if (picture.files.by === asked.by) show("files", { ...picture.files, asked }, pins);
  const { selected } = picture.files;
  const part = selected === picture.read ? "" : `${number(selected)} of ${number(picture.read)}`;
  if (byId("selected").textContent !== part) byId("selected").textContent = part;
  const urgent = { ...picture.breaks, in_kernel: picture.status.in_kernel };
  byId("breaking").hidden = !urgent.breaks.length && !urgent.in_kernel.length;
  show("breaks", urgent, breaks);
  byId("cluster").hidden = !picture.status.cluster;
  show("hosts", { ...picture.hosts, words: picture.status.cluster ?? "" }, hosts);
  show("life", { ...picture.status, uptime_s: 0, descriptors: 0 }, (status) => life({
    status, missing: (what) => `no${status[`${what}_unavailable_because`] ? `: ${status[`${what}_unavailable_because`]}` : ""}`,
  }));
  show("holders", picture.holders, holders);
  show("policy", picture.policy, policy);
  show("footer", { status: { ...picture.status, uptime_s: 0 }, sees_all: picture.sees_all, read: picture.read }, footer);
  tick();
}

function tick() {
  const now_s = (Date.now() + behind_ms) / 1000;
  for (const left of document.querySelectorAll("[data-deadline]")) {
    left.textContent = `${Math.max(0, left.dataset.deadline - now_s).toFixed(0)} s left`;
  }
  for (const cell of document.querySelectorAll("[data-since]")) {
    const words = duration(Math.max(0, now_s - cell.dataset.since));
    if (cell.textContent !== words) cell.textContent = words;
  }
  if (performance.now() - lastPicture > SILENCE_MS) state("waiting", "no news: is pinfs web still running?");
}

// What the viewer asks for stands in the address, behind the #: it stays through a reload, and can be sent to others.

const ASKED = { find: "", show: "all", by: "file" };
const asked = { ...ASKED };
let stream = null;

function readAddress() {
  const told = new URLSearchParams(location.hash.slice(1));
  for (const [key, otherwise] of Object.entries(ASKED)) {
    const control = byId(key);
    control.value = told.get(key) ?? otherwise;
    if (control.value === "") control.value = otherwise; // no such option
    asked[key] = control.value;
  }
}

function ask(changes) {
  Object.assign(asked, changes);
  for (const key of Object.keys(ASKED)) { // a space that was typed stays: a word follows
    if (byId(key).value.trim() !== asked[key]) byId(key).value = asked[key];
  }
  const told = Object.entries(asked).filter(([key, value]) => value !== ASKED[key]);
  history.replaceState(null, "", told.length ? `#${new URLSearchParams(told)}` : location.pathname);
  follow();
}

let typing = 0;
byId("find").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => ask({ find: byId("find").value.trim() }), 200);
});
byId("show").addEventListener("change", () => ask({ show: byId("show").value }));
byId("by").addEventListener("change", () => ask({ by: byId("by").value }));
byId("controls").addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", () => { readAddress(); follow(); });

// Colours

function paint(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  byId("theme").value = theme;
  try { localStorage.setItem("theme", theme); } catch { /* the browser keeps nothing */ }
}

function kept() {
  try { return localStorage.getItem("theme") ?? ""; } catch { return ""; }
}

byId("theme").addEventListener("change", () => paint(byId("theme").value));

// Keys

const KEYS = {
  "/": () => { byId("find").focus(); byId("find").select(); },
  b: () => ask({ show: asked.show === "breaking" ? "all" : "breaking" }),
  f: () => ask({ by: "file" }),
  h: () => ask({ by: "holder" }),
  a: () => ask({ by: "age" }),
  t: () => paint({ "": "light", light: "dark", dark: "" }[byId("theme").value]),
  "?": () => { byId("help").open = !byId("help").open; byId("help").querySelector("summary").focus(); },
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Escape") {
    byId("help").open = false;
    ask({ find: "", show: "all" });
    if (document.activeElement === byId("find")) byId("find").blur();
  } else if (KEYS[event.key] && !["INPUT", "SELECT"].includes(event.target.tagName)) {
    event.preventDefault();
    KEYS[event.key]();
  }
});

function follow() {
  stream?.close();
  const mine = new EventSource(`news?${new URLSearchParams(asked)}`);
  stream = mine;
  mine.onmessage = (message) => draw(JSON.parse(message.data));
  mine.onerror = () => {
    state("waiting", "connecting…");
    if (mine.readyState === EventSource.CLOSED) setTimeout(() => mine === stream && follow(), RETRY_MS);
  };
}

paint(kept());
readAddress();
setInterval(tick, 500);
follow();
