// Contrast of what is rendered, as WCAG 2.2 computes it, from the colours that the browser uses.
var parsed = (text) => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  context.fillStyle = text;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data].map((one) => one / 255);
};
var over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)];
var luminance = (colour) => {
  const [r, g, b] = colour.map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
var ratio = (one, other) => {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
/** What lies behind an element: the backgrounds of all around it. */
var behind = (element) => {
  const all = [];
  for (let one = element; one; one = one.parentElement) all.push(parsed(getComputedStyle(one).backgroundColor));
  return all.reduceRight((under, colour) => over(colour, under), [1, 1, 1]);
};
var opacity = (element) => {
  let found = 1;
  for (let one = element; one; one = one.parentElement) found *= Number(getComputedStyle(one).opacity);
  return found;
};
/** An element that has the focus: its name, and how its outline stands out. */
var focused = () => {
  const one = document.activeElement;
  if (!one || one === document.body) return null;
  const style = getComputedStyle(one.matches("input.hidden") ? one.labels[0] : one);
  const around = behind(one.parentElement);
  const wide = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1.5;
  const name = (one.ariaLabel || one.innerText || one.labels?.[0]?.innerText || one.title || "").trim();
  return { name: `${one.tagName} ${name}`, outline: wide ? ratio(parsed(style.outlineColor), around) : 0 };
};
(() => {
  const weak = {};
  const note = (element, found, needed) => {
    if (found < needed - 0.005) {
      const where = `${element.tagName.toLowerCase()}.${element.getAttribute("class") ?? ""}`;
      weak[`${where} "${element.textContent.trim().slice(0, 30)}"`] = found.toFixed(2);
    }
  };
  for (const one of document.querySelectorAll("body *")) {
    if (!one.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    if (one.matches(":disabled, :disabled *, option, .hidden, .skip")) continue;
    const style = getComputedStyle(one);
    const own = [...one.childNodes].some((each) => each.nodeType === 3 && each.data.trim());
    const isText = one instanceof SVGElement ? one.tagName === "text" : own;
    if (isText) {
      const back = behind(one);
      const [r, g, b, a] = parsed(one instanceof SVGElement ? style.fill : style.color);
      const large = parseFloat(style.fontSize) >= (Number(style.fontWeight) >= 700 ? 18.66 : 24);
      note(one, ratio(over([r, g, b, a * opacity(one)], back), back), large ? 3 : 4.5);
    }
    if (one.matches("button, input:not([type=hidden], [type=range], [type=checkbox]), select")) {
      const [r, g, b, a] = parsed(style.borderTopColor); // what shows that it is a control
      const around = behind(one.parentElement);
      const ground = behind(one);
      const filled = ratio(ground, around);
      const edge = parseFloat(style.borderTopWidth) ? ratio(over([r, g, b, a], around), around) : 1;
      if (!one.matches(".quiet")) note(one, Math.max(filled, edge), 3);
    }
    if (one.matches("rect.bar, polyline.rate, circle.dot, rect.span")) {
      const back = behind(one);
      const paint = style.fill === "none" ? style.stroke : style.fill;
      const [r, g, b, a] = parsed(paint);
      note(one, ratio(over([r, g, b, a * opacity(one)], back), back), 3);
    }
  }
  return weak;
})();
