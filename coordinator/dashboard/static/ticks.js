// Limits and round ticks of an axis. Pure functions.

import { count, short, trimmed } from "./format.js";

const LOG_STEPS = [
  [1],
  [1, 3],
  [1, 2, 5],
  [1, 1.5, 2, 3, 5, 7],
  [1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9],
];

/**
 * Limits of an axis: its own, or those of what is drawn with a margin. Intervals widen them, but one that is far wider
 * than all others is cut: a single run of unknown noise must not flatten the rest.
 * @param {object} axis of the figure
 * @param {number[]} values that have to be seen
 * @param {Array<[number, number]>} intervals
 * @returns {[number, number]}
 */
export function limits(axis, values, intervals) {
  if (axis.categories.length) return [-0.6, axis.categories.length - 0.4];
  const isLog = axis.scale === "log";
  const usable = (value) => Number.isFinite(value) && (!isLog || value > 0);
  const forth = isLog ? Math.log : (value) => value;
  const back = isLog ? Math.exp : (value) => value;
  const at = values.filter(usable).map(forth);
  const pairs = intervals.filter((pair) => pair.every(usable)).map((pair) => pair.map(forth));
  const ends = pairs.flat();
  const [first, last] = extent(at.length ? at : ends);
  const reach = at.length > 1 ? Math.max(last - first, 1.5 * median(pairs.map(([low, high]) => high - low).filter(Boolean))) : Infinity;
  const [low, high] = extent([first, last, ...ends.map((end) => Math.min(Math.max(end, first - reach), last + reach))]);
  const margin = high > low ? 0.06 * (high - low) : isLog ? 0.2 : Math.abs(low) * 0.05 || 1;
  return [axis.low ?? back(low - margin), axis.high ?? back(high + margin)];
}

function median(values) {
  const sorted = values.toSorted((one, other) => one - other);
  return sorted[Math.floor(sorted.length / 2)] ?? 0;
}

function extent(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : [0, 1];
}

/**
 * Round places between two limits.
 * @param {object} choice `wanted`: about how many there is room for; `isWhole`: none between whole numbers
 */
export function ticks(axis, low, high, { wanted, isWhole = false }) {
  if (axis.categories.length) return categoryTicks(axis.categories.length, low, high, wanted);
  if (axis.scale === "log" && low > 0) return logTicks(low, high, wanted);
  return linearTicks(low, high, wanted, isWhole);
}

function categoryTicks(number, low, high, wanted) {
  const step = Math.max(1, Math.ceil(number / Math.max(wanted, 1)));
  return Array.from({ length: number }, (_, place) => place).filter(
    (place) => place % step === 0 && place >= low && place <= high,
  );
}

function linearTicks(low, high, wanted, isWhole = false) {
  const rough = (high - low) / Math.max(2, wanted);
  const decade = 10 ** Math.floor(Math.log10(rough));
  const round = [1, 2, 2.5, 5, 10].map((one) => one * decade).find((one) => one >= rough * 0.999 && !(isWhole && one % 1));
  const step = round ?? 1;
  const found = [];
  for (let place = Math.ceil(low / step - 1e-9); place * step <= high * (1 + 1e-12) + 1e-12 * step; place += 1) {
    found.push(Number((place * step).toPrecision(12)));
  }
  return found;
}

function logTicks(low, high, wanted) {
  let best = [];
  for (const series of LOG_STEPS) {
    const found = [];
    for (let decade = Math.floor(Math.log10(low)); decade <= Math.ceil(Math.log10(high)); decade += 1) {
      for (const step of series) {
        const tick = step * 10 ** decade;
        if (tick >= low * 0.9999 && tick <= high * 1.0001) found.push(tick);
      }
    }
    if (found.length > Math.max(wanted, 3) && best.length >= 2) return best;
    best = found;
    if (best.length >= Math.min(4, wanted)) return thinned(best, wanted);
  }
  return best.length >= 3 ? thinned(best, wanted) : linearTicks(low, high, Math.min(wanted, 4));
}

/** Every so many-th, so that labels do not touch. */
function thinned(values, wanted) {
  const step = Math.ceil(values.length / Math.max(2, wanted));
  return step > 1 ? values.filter((_, place) => place % step === 0) : values;
}

/** The words of ticks: as many digits as tell neighbours apart. */
export function tickLabels(axis, places) {
  if (axis.categories.length) return places.map((place) => axis.categories[place] ?? "");
  const largest = Math.max(...places.map(Math.abs));
  if (axis.ticks?.length && places.every(Number.isInteger) && largest < 1e5) return places.map(count); // 1,024 and not 1.02 k
  if (axis.scale === "log" || largest >= 1e4) return places.map(short);
  const gap = places.length > 1 ? Math.min(...places.slice(1).map((place, i) => place - places[i])) : largest || 1;
  const digits = Math.min(8, Math.max(0, -Math.floor(Math.log10(gap) + 1e-9) + (isHalf(gap) ? 1 : 0)));
  return places.map((place) => (gap > 0 ? place.toFixed(digits) : trimmed(place, 4)));
}

/** Whether a step is 2.5 of its decade and needs a digit more. */
function isHalf(gap) {
  const lead = gap / 10 ** Math.floor(Math.log10(gap) + 1e-9);
  return Math.abs(lead - Math.round(lead)) > 1e-6;
}
