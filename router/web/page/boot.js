// If a file of this version is gone (a deploy between two requests), load the page again, once.
addEventListener("error", (event) => {
  const element = event.target;
  if (!(element instanceof HTMLScriptElement || element instanceof HTMLLinkElement)) return;
  if (sessionStorage.getItem("linnet-reloaded")) return;
  sessionStorage.setItem("linnet-reloaded", "1");
  location.reload();
}, true);
