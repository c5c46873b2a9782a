// Tells what the page shows of a conversation, each time that it shows something else: `tellShown(text of JSON)`.
//
// It reads only the page's elements, as a person reads the screen. It runs before the page's own scripts.
(() => {
  const message = (element) => {
    const text = element.querySelector(".text");
    const reactions = [...element.querySelectorAll(".reactions button")];
    return {
      seq: Number(element.dataset.seq ?? 0),
      mine: element.classList.contains("mine"),
      text: text.textContent,
      mentions: [...text.querySelectorAll(".mention")].map((one) => one.textContent.slice(1)),
      forwarded: element.querySelector(".forwarded")?.textContent.replace("Forwarded from ", "") ?? "",
      edited: element.querySelector(".meta > span:not(.state)") !== null,
      deleted: element.querySelector(".bubble.deleted") !== null,
      files: element.querySelectorAll(".files > *").length,
      answers: element.querySelector(".quote") !== null,
      reactions: Object.fromEntries(reactions.map((one) => [one.firstChild.textContent, Number(one.lastChild.textContent)])),
      state: element.querySelector(".state")?.getAttribute("aria-label") ?? "",
    };
  };
  let told = "";
  const look = () => {
    const chat = document.querySelector(".chat");
    const log = chat?.querySelector(".log");
    if (!log || log.getAttribute("aria-busy") === "true") return;
    const typing = chat.querySelector(".chat-title .typing") !== null;
    const shown = { title: chat.getAttribute("aria-label"), typing, messages: [...log.querySelectorAll(".message")].map(message) };
    const text = JSON.stringify(shown);
    if (text !== told) window.tellShown(told = text);
  };
  new MutationObserver(look).observe(document, { subtree: true, childList: true, characterData: true, attributes: true });
})();
