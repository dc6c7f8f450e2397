"""Whether the chat's texts can be read: WCAG 2's contrast ratio, as the browser draws them."""

LEAST = 4.5
"""WCAG 2.2, success criterion 1.4.3 (AA), for text of ordinary size."""

TEXTS = (".sc-user .sc-text", ".sc-assistant .sc-text", ".sc-who", ".sc-state", ".sc-faded .sc-text", ".sc-foot span",
         ".sc-copy", ".sc-meter span", ".sc-title", ".sc-link", ".sc-text code", ".sc-empty")  # fmt: skip

RATIOS = """(chat, texts) => {
  const rgba = text => {
    const n = text.match(/[\\d.]+/g).map(Number), scale = text.startsWith("color(") ? 255 : 1;
    return [...n.slice(0, 3).map(v => v * scale), n.length < 4 ? 1 : n[3]];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[3] * top[i] + (1 - top[3]) * below[i]).concat(1);
  const light = colour => colour.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const path = node => node ? [...path(node.parentElement), node] : [];
  const ratio = node => {
    let behind = [255, 255, 255, 1], shown = 1;
    for (const style of path(node).map(above => getComputedStyle(above))) {
      shown *= Number(style.opacity);
      behind = over(rgba(style.backgroundColor), behind);
    }
    const ink = rgba(getComputedStyle(node).color);
    ink[3] *= shown;
    const [a, b] = [light(over(ink, behind)), light(behind)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const first = texts.map(name => [name, chat.querySelector(name)]).filter(([, node]) => node);
  return Object.fromEntries(first.map(([name, node]) => [name, ratio(node)]));
}"""


def too_pale(chat) -> dict[str, float]:
    """The kinds of text in a chat (the first of each) whose ratio to what is behind them is too low."""
    ratios = chat.evaluate(RATIOS, TEXTS)
    assert len(ratios) >= 5, "there is something to measure"
    return {name: ratio for name, ratio in ratios.items() if ratio < LEAST}
