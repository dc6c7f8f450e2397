// What core ipywidgets cannot say: Enter sends, in one message; Copy copies; the status line is a live region.
// Everything works by delegation from the document, once per page; without it the buttons still do their work.
(() => {
  if (window.smallchatReady) return;
  window.smallchatReady = true;
  document.documentElement.classList.add("sc-js");

  const MARK = "\ue000";
  let stamp = Date.now();

  // The text goes out in a box of its own: that of the input and the click on Send would be two messages, of which
  // ipywidgets keeps the first back while an earlier one is not answered. A stamp makes each message a new one.
  const submit = (chat) => {
    const [area, outbox] = [".sc-input", ".sc-outbox"].map((name) => chat.querySelector(`${name} textarea`));
    if (!area.value.trim() || chat.querySelector(".sc-send").disabled) return;
    for (const remark of chat.querySelectorAll(".sc-unheard")) remark.remove();
    outbox.value = area.value + MARK + (stamp += 1).toString(36);
    outbox.dispatchEvent(new Event("change", { bubbles: true }));
    watch(area, outbox, area.value);
    area.value = "";
  };

  // A kernel that hears a message empties the outbox; one that is busy or gone does not: then the text comes back.
  const watch = (area, outbox, text) => {
    const sent = outbox.value, patience = Date.now() + 5000;
    let remark = null;
    const timer = setInterval(() => {
      const heard = outbox.value !== sent;
      if (!heard && !remark && Date.now() > patience) {
        remark = document.createElement("div");
        remark.className = "sc-notice sc-unheard";
        remark.setAttribute("role", "alert");
        remark.textContent = "The kernel has not heard this message yet. If it is busy with a cell, it will hear it " +
          "after that; if it was restarted, run the cells again.";
        area.closest(".sc-line").before(remark);
        area.value = area.value || text;
      }
      if (heard || !outbox.isConnected) clearInterval(timer);
      if (!heard || !remark) return;
      remark.remove();
      setTimeout(() => {  // a kernel that refuses it says why, and the text stays
        if (area.value === text && !area.closest(".smallchat").querySelector(".sc-notice")) area.value = "";
      }, 500);
    }, 250);
  };

  const caught = (event, chat) => {
    event.preventDefault();
    event.stopPropagation();
    submit(chat);
  };

  document.addEventListener("keydown", (event) => {
    const area = event.target instanceof Element && event.target.closest(".smallchat .sc-input textarea");
    if (!area || event.key !== "Enter" || event.shiftKey) return;
    if (event.isComposing || event.keyCode === 229) return;  // Enter takes a candidate of an input method; Safari says 229
    caught(event, area.closest(".smallchat"));
  }, true);

  document.addEventListener("click", (event) => {
    const send = event.target instanceof Element && event.target.closest(".smallchat .sc-send");
    if (send) caught(event, send.closest(".smallchat"));
  }, true);

  document.addEventListener("click", (event) => {
    const button = event.target instanceof Element && event.target.closest(".smallchat .sc-copy");
    if (!button) return;
    const text = button.dataset.text;
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

  // A click on an underlined passage shows where it stands.
  document.addEventListener("click", (event) => {
    const passage = event.target instanceof Element && event.target.closest(".smallchat .sc-origin");
    const fold = passage && passage.closest(".sc-bubble").querySelector(".sc-origins");
    if (!fold) return;
    const places = fold.querySelector(`[data-span="${passage.dataset.span}"]`);
    fold.open = places.open = true;
    places.scrollIntoView({ block: "nearest" });
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
