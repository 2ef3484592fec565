// From a score to what is said of the picture. The thresholds of every rate were computed by
// blemish when the page was written (`detector.rates`); here one of them is chosen.

/** The threshold of a category: its own, or else the common one. May be null, or have no value. */
export function thresholdFor({ threshold, thresholds }, category) {
  const own = thresholds[category];
  return own && own.value !== null ? own : threshold;
}

/** Whether the score is above the threshold: 1 a defect, 0 good, null without a threshold. */
export function verdict(score, threshold) {
  if (!threshold || threshold.value === null) return null;
  return score > threshold.value ? 1 : 0;
}

/** How likely a good picture scores as high, by the ones the threshold comes from; or null. */
export function pValue(score, detector, chosen, category) {
  const own = chosen.thresholds[category];
  const hasOwn = own && own.value !== null;
  const known = (hasOwn ? detector.scores_by_category[category] : detector.scores) ?? [];
  if (!known.length) return null;
  return (1 + known.filter((one) => one >= score).length) / (known.length + 1);
}

/** The category whose mean features are nearest to those of a picture. */
export function nearest(features, { means, spread }) {
  let best = ["", Infinity];
  for (const [name, mean] of Object.entries(means)) {
    const distance = mean.reduce((sum, value, at) => {
      return sum + ((features[at] - value) / spread[at]) ** 2;
    }, 0);
    if (distance < best[1]) best = [name, distance];
  }
  return best[0];
}
