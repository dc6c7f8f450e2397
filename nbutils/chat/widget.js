// What core ipywidgets cannot say: Enter sends, Copy copies, the status line is a live region.
// Everything works by delegation from the document, once per page; without it the buttons still do their work.
(() => {
  if (window.smallchatReady) return;
  window.smallchatReady = true;
  document.documentElement.classList.add("sc-js");

  document.addEventListener("keydown", (event) => {
    const area = event.target instanceof Element && event.target.closest(".sc-input textarea");
    if (!area || event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    event.stopPropagation();
    const send = area.closest(".smallchat").querySelector(".sc-send");
    if (!send || send.disabled || !area.value.trim()) return;
    area.dispatchEvent(new Event("change", { bubbles: true })); // the text reaches the kernel before the click
    send.click();
  }, true);

  document.addEventListener("click", (event) => {
    const button = event.target instanceof Element && event.target.closest(".smallchat .sc-copy");
    if (!button) return;
    const text = button.closest(".sc-bubble").querySelector(".sc-text").innerText;
    const done = () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
    const byHand = () => {
      const box = document.createElement("textarea");
      box.value = text;
      document.body.append(box);
      box.select();
      document.execCommand("copy");
      box.remove();
      done();
    };
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, byHand); else byHand();
  });

  const label = () => {
    for (const [selector, attributes] of [
      [".smallchat .sc-announce .widget-html-content", { "aria-live": "polite" }],
      [".smallchat .sc-log", { role: "log", tabindex: "0", "aria-label": "Conversation", "aria-live": "off" }],
    ]) {
      for (const node of document.querySelectorAll(selector)) {
        for (const [name, value] of Object.entries(attributes)) {
          if (node.getAttribute(name) !== value) node.setAttribute(name, value);
        }
      }
    }
  };
  label();
  new MutationObserver(label).observe(document.body, { childList: true, subtree: true });
})();
