/** What the page knows of its deployment before it asks anything. */

export function options() {
  const given = new URLSearchParams(document.querySelector('meta[name="linnet"]')?.getAttribute("content") ?? "");
  return { accounts: given.get("accounts") === "yes", bot: given.get("bot") ?? "", passwordMin: Number(given.get("password")) || 8 };
}
