// Numbers as people read them: few digits, always a unit, and a dash for what is not known.

export const NONE = "–";
const THIN = "\u202f";
const missing = (value) => value === null || value === undefined;

/** Three digits that mean something, no more: 0.42, 4.2, 42, 420, 4,200. */
export function number(value) {
  if (missing(value)) return NONE;
  const size = Math.abs(value);
  const digits = size === 0 || size >= 100 ? 0 : size >= 10 ? 1 : 2;
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

export function count(value) {
  if (missing(value)) return NONE;
  if (Math.abs(value) < 10_000) return value.toLocaleString("en");
  const [factor, unit] = value < 1e6 ? [1e3, "k"] : value < 1e9 ? [1e6, "M"] : [1e9, "G"];
  return `${(value / factor).toFixed(value / factor < 100 ? 1 : 0)}${THIN}${unit}`;
}

export const perSecond = (value) => (missing(value) ? NONE : `${number(value)}${THIN}/s`);

export function seconds(value) {
  if (missing(value)) return NONE;
  if (value === 0) return `0${THIN}s`;
  if (value < 0.001) return `${Math.round(value * 1e6)}${THIN}µs`;
  if (value < 0.01) return `${(value * 1000).toFixed(1)}${THIN}ms`;
  if (value < 1) return `${Math.round(value * 1000)}${THIN}ms`;
  if (value < 10) return `${value.toFixed(2)}${THIN}s`;
  if (value < 100) return `${value.toFixed(1)}${THIN}s`;
  return duration(value);
}

/** A longer time in its two largest units. */
export function duration(value) {
  if (missing(value)) return NONE;
  const total = Math.max(0, Math.round(value));
  const parts = [[Math.floor(total / 86400), "d"], [Math.floor((total % 86400) / 3600), "h"], [Math.floor((total % 3600) / 60), "min"], [total % 60, "s"]];
  const first = parts.findIndex(([amount]) => amount > 0);
  if (first < 0) return `0${THIN}s`;
  return parts.slice(first, first + 2).filter(([amount]) => amount > 0).map(([amount, unit]) => `${amount}${THIN}${unit}`).join(" ");
}

export const share = (value) => (missing(value) ? NONE : `${(100 * value).toFixed(value >= 0.995 || value < 0.1 ? (value === 1 || value === 0 ? 0 : 1) : 0)}${THIN}%`);

/** Nano-dollars: cents and more as such, less with as many digits as it takes to see two of them. */
export function dollars(nano) {
  if (missing(nano)) return NONE;
  const usd = nano / 1e9;
  const size = Math.abs(usd);
  const sign = usd < 0 ? "−" : "";
  if (size === 0) return "$0";
  const digits = size >= 1 ? 2 : Math.min(9, 1 - Math.floor(Math.log10(size)));
  return `${sign}$${size.toLocaleString("en", { minimumFractionDigits: Math.max(2, digits), maximumFractionDigits: Math.max(2, digits) })}`;
}

export function bytes(value) {
  if (missing(value)) return NONE;
  return value >= 2 ** 30 ? `${(value / 2 ** 30).toFixed(1)}${THIN}GiB` : `${Math.round(value / 2 ** 20)}${THIN}MiB`;
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
export const timeOf = (unixSeconds) => clock.format(unixSeconds * 1000);
export const words = (code) => (missing(code) ? NONE : code.replaceAll("_", " "));
