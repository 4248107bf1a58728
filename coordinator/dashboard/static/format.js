// How numbers read: the same rules as the report's (coordinator/figures/shown.py).

const SIZES = [
  [1e12, " T"],
  [1e9, " B"],
  [1e6, " M"],
  [1e3, " k"],
];
const GROUPED = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** A whole number in groups of three: 199,680. */
export function count(value) {
  return GROUPED.format(value);
}

/** A number for an axis: 0.25, 50 k, 1.5 M, 70 B; 3e+21 beyond. */
export function short(value) {
  const size = Math.abs(value);
  if (size >= 1e15) return value.toExponential(2).replace(/\.?0+e/, "e");
  for (const [unit, suffix] of SIZES) if (size >= 0.9995 * unit) return trimmed(value / unit, 3) + suffix;
  return size > 0 && size < 1e-4 ? value.toExponential(1) : trimmed(value, 3);
}

/** Significant digits without trailing zeros. */
export function trimmed(value, digits) {
  return String(Number(value.toPrecision(digits)));
}

/** A number with the digits that its unit deserves: nats to 1e-4, rates in whole tokens, else four digits. */
export function figure(value, unit = "") {
  if (value === null || value === undefined || !Number.isFinite(value)) return "not known";
  if (unit.startsWith("nats")) return value.toFixed(4);
  const size = Math.abs(value);
  if (size >= 1e7) return short(value);
  const whole = unit === "tokens/s" || unit === "tokens" || unit === "sequences";
  if (size >= 1000 || (whole && size >= 10)) return count(value);
  return trimmed(value, 4);
}

/** 12% or 1.2%. */
export function percent(fraction, digits) {
  if (fraction === null || fraction === undefined) return "not known";
  const value = 100 * fraction;
  return `${value.toFixed(digits ?? (Math.abs(value) < 10 && value !== 0 ? 1 : 0))}%`;
}

/** +1.2% or −0.4%: a difference. */
export function signedPercent(fraction, digits) {
  if (fraction === null || fraction === undefined) return "not known";
  const size = percent(Math.abs(fraction), digits);
  const sign = parseFloat(size) === 0 ? "" : fraction > 0 ? "+" : "−";
  return sign + size;
}

/** Seconds as people say them: 45 s, 9 min 12 s, 2 h 05 min, 3 d 04 h. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "not known";
  if (seconds > 0 && seconds < 10) return `${trimmed(seconds, 2)} s`;
  const whole = Math.round(seconds);
  const two = (value) => String(Math.floor(value)).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${two((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${two((whole % 86400) / 3600)} h`;
}

/** Time that has passed since a moment, roughly: just now, 40 s ago, 12 min ago, 3 h ago, 2 d ago. */
export function ago(unix, now = Date.now() / 1000) {
  const seconds = now - unix;
  if (seconds < 5) return "just now";
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} d ago`;
}

/** A wall-clock time in UTC, as in the report. */
export function moment(unix) {
  return new Date(1000 * unix).toISOString().slice(0, 19).replace("T", " ") + " UTC";
}

/** The time of the day alone, UTC: for lists whose day is plain. */
export function clock(unix) {
  return new Date(1000 * unix).toISOString().slice(11, 19);
}

/** Order of agents: a-2 before a-10. */
export function byName(one, other) {
  return one.agent.localeCompare(other.agent, "en", { numeric: true });
}

/** 1 run, 2 runs, 3 retries. */
export function plural(number, noun) {
  if (number === 1) return `1 ${noun}`;
  return `${count(number)} ${noun.endsWith("y") ? noun.slice(0, -1) + "ies" : noun + "s"}`;
}

/** A sentence as it begins a line. */
export function capital(sentence) {
  return sentence.charAt(0).toUpperCase() + sentence.slice(1);
}

/** "nan-loss" as "nan loss": names of enums for people. */
export function words(name) {
  return String(name ?? "").replaceAll("-", " ").replaceAll("_", " ");
}
