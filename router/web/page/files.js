/** Files of a message: pictures as pictures, all others as links. Links to them are asked for when the message is shown. */

import { t } from "./strings.js";
import { html, Icon, useEffect, useState } from "./ui.js";

/** @param {{ message: import("./session.js").Message, session: import("./session.js").Session, id: string }} props */
export function Files({ message, session, id }) {
  /** @type {any[]} */
  const files = message.files;
  const [links, setLinks] = useState(/** @type {Record<string, { url: string, previews: Record<string, string> }>} */ ({}));
  const names = files.map(({ sha256 }) => sha256).join(" ");
  useEffect(() => {
    const where = message.seq === undefined ? undefined : id;
    session.client.media.links(names.split(" "), where).then(setLinks, () => undefined); // without links the names are shown
  }, [names, message.seq]);
  return html`<span class="files">${files.map((file) => {
    const link = links[file.sha256];
    const name = file.name || t("file");
    const preview = link && Object.entries(link.previews).sort(([a], [b]) => Number(b) - Number(a))[0]?.[1];
    const shown = file.kind === "image" && link ? (preview ?? link.url) : undefined;
    const inner = shown ? html`<img src=${shown} alt=${name} width=${file.width ?? undefined} height=${file.height ?? undefined} loading="lazy" />` : html`<${Icon} name="copy" /><span dir="auto">${name}</span>`;
    return link ? html`<a key=${file.sha256} class="file" href=${link.url} target="_blank" rel="noopener">${inner}</a>` : html`<span key=${file.sha256} class="file">${inner}</span>`;
  })}</span>`;
}
