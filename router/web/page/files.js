/** Files of a message: pictures as pictures, voice and video to play, all others to save. Links to them are asked for when they are shown. */

import { length, sizeOf } from "./format.js";
import { KEPT_MS, linkTo, ownUpload } from "./links.js";
import { t } from "./strings.js";
import { html, Icon, useEffect, useRef, useState } from "./ui.js";

/** @typedef {Partial<import("./sdk/wire.js").FileInfo> & { sha256: string }} Shown What is known of a file; of a message on its way little. */

const BARS = 40;
const AGAIN_MS = 60_000;

/** @param {{ message: import("./session.js").Message, session: import("./session.js").Session, id: string, show: any }} props */
export function Files({ message, session, id, show }) {
  const where = message.seq === undefined ? "" : id;
  const files = message.files.map((file) => /** @type {Shown} */ ({ ...ownUpload(file.sha256)?.info, ...file }));
  const pictures = files.filter(({ kind }) => kind === "image");
  const look = (/** @type {Shown} */ file) => show("picture", { files: pictures, at: pictures.indexOf(file), where, message });
  return html`<span class=${pictures.length > 1 ? "files many" : "files"}>
    ${files.map((file) => html`<${One} key=${file.sha256} file=${file} where=${where} session=${session} look=${look} />`)}
  </span>`;
}

/** @param {{ file: Shown, where: string, session: import("./session.js").Session, look: (file: Shown) => void }} props */
function One({ file, where, session, look }) {
  const [link, again] = useLink(session, file, where);
  const name = file.name || t("file");
  if (file.kind === "image") return html`<${Picture} file=${file} link=${link} again=${again} look=${look} />`;
  if (file.kind === "voice") return html`<${Voice} src=${link?.url ?? ""} duration=${file.duration ?? 0} waveform=${file.waveform ?? []} again=${again} />`;
  if (file.kind === "video" && link) return html`<video class="video" controls preload="metadata" src=${link.url} aria-label=${name} onError=${again}></video>`;
  const save = (/** @type {Event} */ event) => {
    if (!link || Date.now() - link.at < KEPT_MS) return;
    event.preventDefault(); // it may have ended
    void linkTo(session.client, file.sha256, where).then((found) => Object.assign(document.createElement("a"), { href: (found ?? link).url, download: name }).click());
  };
  const inner = html`<span class="file-icon"><${Icon} name="file" /></span><span class="file-text"><b dir="auto">${name}</b><small>${file.size === undefined ? " " : sizeOf(file.size)}</small></span>`;
  return link ? html`<a class="file" href=${link.url} download=${name} onClick=${save}>${inner}<${Icon} name="save" /></a>` : html`<span class="file">${inner}</span>`;
}

/**
 * A link to a file, and a function that asks for another one, but not at once again: the first may have ended.
 *
 * @param {import("./session.js").Session} session @param {Shown} file @param {string} where @returns {[import("./links.js").Link | undefined, () => void]}
 */
export function useLink(session, file, where) {
  const mine = ownUpload(file.sha256);
  const [link, setLink] = useState(/** @type {import("./links.js").Link | undefined} */ (mine && { url: mine.url, previews: {}, at: Infinity }));
  const triedAt = useRef(-Infinity);
  const ask = (/** @type {boolean} */ again) => void linkTo(session.client, file.sha256, where, again).then((found) => found && setLink(found));
  useEffect(() => {
    if (!mine) ask(false);
  }, [file.sha256, where]);
  useEffect(() => session.client.on("status", (status) => status === "live" && !link && ask(false)), [link]);
  const again = () => {
    if (performance.now() - triedAt.current < AGAIN_MS) return;
    triedAt.current = performance.now();
    ask(true);
  };
  return [link, again];
}

/** The smallest preview that is sharp at this width, else the picture. @param {import("./links.js").Link} link @param {number} width */
export function sharp(link, width) {
  const edges = Object.keys(link.previews).map(Number).sort((a, b) => a - b);
  const edge = edges.find((one) => one >= width * devicePixelRatio) ?? edges.at(-1);
  return edge === undefined ? link.url : (link.previews[edge] ?? link.url);
}

/** Its place is kept while it loads, so that nothing moves. @param {{ file: Shown, link: import("./links.js").Link | undefined, again: () => void, look: (file: Shown) => void }} props */
function Picture({ file, link, again, look }) {
  const width = file.width ?? 4;
  const height = file.height ?? 3;
  const name = file.name || t("kind_image");
  return html`<button type="button" class="picture" aria-label=${t("look_at", { name })} onClick=${() => look(file)}>
    <img src=${link && sharp(link, 160)} alt=${name} width=${Math.round(width)} height=${Math.round(height)} loading="lazy" decoding="async" onError=${again} />
  </button>`;
}

/**
 * A voice message: play, a place in it, and how loud it is over its time.
 *
 * @param {{ src: string, duration: number, waveform: number[], again?: () => void }} props
 */
export function Voice({ src, duration, waveform, again = () => undefined }) {
  const [playing, setPlaying] = useState(false);
  const [at, setAt] = useState(0);
  /** @type {{ current: any }} */
  const audio = useRef(null);
  const total = duration / 1000 || (Number.isFinite(audio.current?.duration) ? audio.current.duration : 0);
  useEffect(() => {
    if (!playing) return undefined;
    const timer = setInterval(() => setAt(audio.current.currentTime), 100);
    return () => clearInterval(timer);
  }, [playing]);
  useEffect(() => () => audio.current?.pause(), []);
  const toggle = () => {
    if (playing) return audio.current.pause();
    for (const other of document.querySelectorAll("audio")) other.pause();
    return void audio.current.play().catch(() => again());
  };
  const seek = (/** @type {any} */ event) => {
    audio.current.currentTime = Number(event.target.value);
    setAt(Number(event.target.value));
  };
  const bars = waveform.length ? waveform : new Array(BARS).fill(60);
  const share = total ? Math.min(1, at / total) : 0;
  return html`<span class="voice">
    <button type="button" class="play" disabled=${!src} aria-label=${playing ? t("pause") : t("play")} title=${playing ? t("pause") : t("play")} onClick=${toggle}><${Icon} name=${playing ? "pause" : "play"} /></button>
    <span class="wave"><${Wave} levels=${bars} share=${share} /><input type="range" min="0" max=${Math.max(total, 0.1)} step="0.1" value=${at} aria-label=${t("place_in_it")} aria-valuetext=${length(at)} onInput=${seek} disabled=${!src} /></span>
    <span class="length">${length(playing || at > 0 ? at : total)}</span>
    <audio ref=${audio} src=${src || undefined} preload="none" onPlay=${() => setPlaying(true)} onPause=${() => setPlaying(false)} onEnded=${() => (setPlaying(false), setAt(0))} onError=${again}></audio>
  </span>`;
}

/** Levels of 0 to 255 as bars, the played part in another colour. @param {{ levels: number[], share?: number }} props */
export function Wave({ levels, share = 1 }) {
  const bars = resampled(levels, BARS);
  return html`<svg class="bars" viewBox=${`0 0 ${BARS * 4} 32`} preserveAspectRatio="none" aria-hidden="true">
    ${bars.map((level, i) => {
      const height = Math.max(3, (level / 255) * 30);
      return html`<rect key=${i} x=${i * 4 + 0.5} y=${16 - height / 2} width="3" height=${height} rx="1.500" class=${i / BARS < share ? "played" : ""} />`;
    })}
  </svg>`;
}

/** So many levels, each the loudest of its part. @param {number[]} levels @param {number} count */
export function resampled(levels, count) {
  return Array.from({ length: count }, (_, i) => {
    const from = Math.floor((i * levels.length) / count);
    const to = Math.max(from + 1, Math.floor(((i + 1) * levels.length) / count));
    return Math.max(0, ...levels.slice(from, to));
  });
}
