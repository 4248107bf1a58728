// The shell: which page is shown, the theme, the light of the stream, and when pages are asked for again.

import { ApiError } from "./api.js";
import { announce, h, s } from "./dom.js";
import { Live } from "./live.js";
import { missing } from "./parts.js";

const PAGES = [
  { name: "overview", title: "Overview", pattern: /^\/$/ },
  { name: "study", title: "Study", pattern: /^\/study$/ },
  { name: "trials", title: "Trials", pattern: /^\/trials$/ },
  { name: "trial", title: "Trial", pattern: /^\/trials\/([a-z0-9][a-z0-9_.-]{0,127})$/, nav: "trials" },
  { name: "hardware", title: "Hardware", pattern: /^\/hardware$/ },
  { name: "recommendation", title: "Recommendation", pattern: /^\/recommendation$/ },
];
const SOON = 500; // ms from the first event to asking again
const SELDOM = 4000; // and at least this long between two askings: many pages may be open
const LIGHTS = { live: "live", reconnecting: "reconnecting", ended: "run has ended", connecting: "connecting" };

const main = document.getElementById("main");
let shown = null; // {page, refresh, destroy, event, pulse} of the page on view
let run = null;

// Pages

async function show({ isBack = false } = {}) {
  const found = PAGES.map((page) => ({ page, match: page.pattern.exec(location.pathname) })).find(({ match }) => match);
  if (!found) return showMissing();
  const { page, match } = found;
  const ticket = {};
  shown?.destroy?.();
  shown = ticket;
  markPage(page);
  main.setAttribute("aria-busy", "true");
  try {
    const { mount } = await import(`./pages/${page.name}.js`);
    const root = h("div.page", { class: `page-${page.name}` });
    const context = { id: match[1], open: openTrial, go, told };
    const mounted = await mount(root, context);
    if (shown !== ticket) return mounted.destroy?.();
    shown = { page, ...mounted };
    main.replaceChildren(root);
    mounted.shown?.();
  } catch (error) {
    if (shown !== ticket) return;
    shown = { page, failed: true };
    main.replaceChildren(failure(error));
    retryLater(ticket);
  } finally {
    main.setAttribute("aria-busy", "false");
  }
  if (!isBack) scrollTo(0, 0);
}

/** What every page value tells of the run: its name, its newest event, whether it was simulated. */
function told(page) {
  if (run !== page.run) {
    run = page.run;
    document.getElementById("run-name").textContent = page.run;
  }
  const banner = document.getElementById("simulated");
  banner.hidden = !page.simulated;
  if (page.simulated) banner.replaceChildren(h("b", "SIMULATED"), " The fleet or the engine of this run is a simulation: nothing here was measured on a device.");
  if (page.state) live.ended(page.state !== "running");
  live.start(page.seq);
}

function markPage(page) {
  document.title = `${page.title} · archfleet`;
  for (const link of document.querySelectorAll("#nav a")) {
    if (link.dataset.page === (page.nav ?? page.name)) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function failure(error) {
  const isOurs = error instanceof ApiError;
  if (!isOurs) console.error(error);
  return h("div.page", [h("h1", isOurs && error.status === 404 ? "Not found" : "This page cannot be shown now"), missing(isOurs ? error.message : String(error))]);
}

function retryLater(ticket) {
  setTimeout(() => {
    if (shown?.failed && shown.page && document.visibilityState === "visible") show({ isBack: true });
  }, 5000, ticket);
}

function showMissing() {
  shown?.destroy?.();
  shown = null;
  main.replaceChildren(h("div.page", [h("h1", "Not found"), missing(`There is no page at ${location.pathname}.`)]));
  main.setAttribute("aria-busy", "false");
}

function go(address, { isReplacing = false } = {}) {
  history[isReplacing ? "replaceState" : "pushState"](null, "", address);
  show().then(() => {
    main.focus({ preventScroll: true });
    announce(document.title);
  });
}

function openTrial(trialId) {
  go(`/trials/${trialId}`);
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href]");
  if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const address = new URL(link.href);
  if (address.origin !== location.origin || link.download || address.pathname.startsWith("/api/") || link.target) return;
  if (address.hash && address.pathname === location.pathname) return;
  if (!PAGES.some((page) => page.pattern.test(address.pathname))) return;
  event.preventDefault();
  go(address.pathname + address.search);
});
addEventListener("popstate", () => show({ isBack: true }));

// Asking again

let refreshing = 0;
let refreshedAt = 0;

/** Ask for the page again soon, and not too often; not at all while nobody looks. */
function refreshSoon(wait = SOON) {
  if (refreshing || document.visibilityState !== "visible") return;
  const due = Math.max(wait, refreshedAt + SELDOM - Date.now());
  refreshing = setTimeout(refresh, due);
}

async function refresh() {
  refreshing = 0;
  refreshedAt = Date.now();
  if (shown?.failed) return show({ isBack: true });
  try {
    await shown?.refresh?.();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error; // the light tells that the coordinator is away
  }
}

document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") refreshSoon(0);
});

// The stream

const live = new Live({
  event(fact) {
    document.dispatchEvent(new CustomEvent("archfleet:event", { detail: fact }));
    shown?.event?.(fact);
    refreshSoon();
  },
  pulse(counts) {
    live.ended(counts.state !== "running");
    shown?.pulse?.(counts);
    refreshSoon(SELDOM);
  },
  resync() {
    refreshSoon(0);
  },
  state(name) {
    const light = document.getElementById("live");
    if (light.dataset.state === "reconnecting" && name !== "reconnecting") refreshSoon(0);
    light.dataset.state = name;
    light.querySelector("span").textContent = LIGHTS[name];
  },
});

// The theme: the system's, or the one that was chosen

const THEMES = {
  auto: { next: "light", label: "Theme: as the system. Change to light", path: "M12 3.5a8.5 8.5 0 1 0 0 17 8.5 8.5 0 0 0 0-17v17", half: "M12 3.5a8.5 8.5 0 0 1 0 17z" },
  light: { next: "dark", label: "Theme: light. Change to dark", path: "M12 7.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6 19 19M5 19l1.4-1.4M17.6 6.4 19 5" },
  dark: { next: "auto", label: "Theme: dark. Change to the system's", path: "M19.5 14.5A8 8 0 0 1 9.5 4.5a8 8 0 1 0 10 10z" },
};
const themeButton = document.getElementById("theme");

function theme() {
  return document.documentElement.dataset.theme ?? "auto";
}

function setTheme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  themeButton.setAttribute("aria-label", THEMES[name].label);
  themeButton.title = THEMES[name].label;
  themeButton.replaceChildren(s("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, s("path", { d: THEMES[name].path }), THEMES[name].half ? s("path", { d: THEMES[name].half, fill: "currentColor" }) : null));
  recolour();
}

/** Figures, if any were drawn, paint themselves anew. */
function recolour() {
  document.dispatchEvent(new Event("archfleet:theme"));
}

themeButton.addEventListener("click", () => {
  const { next } = THEMES[theme()];
  setTheme(next);
  try {
    if (next === "auto") localStorage.removeItem("archfleet-theme");
    else localStorage.setItem("archfleet-theme", next);
  } catch {
    // it holds until the page is left
  }
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);

// Paper is white, and has room for figures that nobody has scrolled to
addEventListener("keydown", (event) => {
  if (event.key !== "p" || !(event.ctrlKey || event.metaKey) || event.shiftKey || event.altKey) return;
  event.preventDefault();
  Promise.resolve(shown?.all?.()).finally(() => print());
});
let themeBefore = "auto";
addEventListener("beforeprint", () => {
  themeBefore = theme();
  setTheme("light");
});
addEventListener("afterprint", () => setTheme(themeBefore));

// Signing out, where somebody signed in

const signOut = document.getElementById("sign-out");
try {
  signOut.hidden = localStorage.getItem("archfleet-signed-in") === null;
} catch {
  // storage is forbidden
}
signOut.addEventListener("submit", () => localStorage.removeItem("archfleet-signed-in"));

setTheme(theme());
show();
