/** What the page knows of its deployment before it asks anything. */

/** `media`: the megabytes that a file of each kind may have; undefined if the deployment takes no files. */
export function options() {
  const given = new URLSearchParams(document.querySelector('meta[name="linnet"]')?.getAttribute("content") ?? "");
  const [image = 0, voice = 0, video = 0, file = 0] = (given.get("media") ?? "").split(" ").map(Number);
  return {
    accounts: given.get("accounts") === "yes",
    bot: given.get("bot") ?? "",
    passwordMin: Number(given.get("password")) || 8,
    search: given.get("search") === "yes",
    media: image ? { image, voice, video, file } : undefined,
  };
}
