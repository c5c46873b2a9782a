/** Dialogs about files: what is about to be sent, a picture from the camera, and a picture in full. */

import { sizeOf } from "./format.js";
import { sharp, useLink } from "./files.js";
import { t } from "./strings.js";
import { Dialog, html, Icon, IconButton, useEffect, useLayoutEffect, useRef, useState } from "./ui.js";
import { cleanName, kindOf, MOST_FILES, sendFiles, tooLarge } from "./uploads.js";

/** @typedef {{ session: import("./session.js").Session, show: any, say: (text: string) => void, close: () => void, argument: any }} Props */

/** @type {Record<string, (props: any) => any>} */
export const DIALOGS = { attach: Attach, camera: Camera, picture: Picture };

/** @typedef {{ file: File, url: string }} Chosen A file, and a picture's address to show it. */

/** @param {File} file @returns {Chosen} */
function chosen(file) {
  return { file, url: kindOf({ blob: file }) === "image" ? URL.createObjectURL(file) : "" };
}

/** Files with a text that are about to be sent. `argument`: { files, conversation, caption, replyTo, sent } @param {Props} props */
function Attach({ session, close, say, argument }) {
  const { conversation } = argument;
  const [items, setItems] = useState(() => /** @type {Chosen[]} */ (argument.files.slice(0, MOST_FILES).map(chosen)));
  const [caption, setCaption] = useState(argument.caption ?? "");
  const [original, setOriginal] = useState(false);
  /** @type {{ current: Chosen[] }} */
  const held = useRef(items);
  held.current = items;
  useEffect(() => {
    if (argument.files.length > MOST_FILES) say(t("too_many_files", { count: MOST_FILES }));
    return () => held.current.forEach(({ url }) => url && URL.revokeObjectURL(url));
  }, []);
  const limits = items.map(({ file }) => tooLarge({ blob: file, ...(original ? { kind: "file" } : {}) }));
  const pictures = items.filter(({ url }) => url).length;
  const add = (/** @type {any} */ event) => {
    const more = [...event.target.files];
    if (items.length + more.length > MOST_FILES) say(t("too_many_files", { count: MOST_FILES }));
    setItems([...items, ...more.slice(0, MOST_FILES - items.length).map(chosen)]);
    event.target.value = "";
  };
  const remove = (/** @type {Chosen} */ one) => {
    if (one.url) URL.revokeObjectURL(one.url);
    const left = items.filter((item) => item !== one);
    if (left.length) setItems(left);
    else close();
  };
  const go = (/** @type {Event} */ event) => {
    event.preventDefault();
    if (limits.some(Boolean)) return;
    const as = items.map(({ file, url }) => ({ blob: file, name: cleanName(file.name), ...(original && url ? { kind: /** @type {const} */ ("file") } : {}) }));
    sendFiles(session, conversation.id, as, caption.trim(), argument.replyTo);
    close();
    argument.sent();
  };
  const onKeyDown = (/** @type {any} */ event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) go(event);
  };
  return html`<${Dialog} title=${t("send_files", { count: items.length })} close=${close} className="wide"><form onSubmit=${go}>
    <ul class=${items.length === 1 ? "chosen one" : "chosen"}>${items.map((one, i) => html`<li key=${one.file.name + one.file.size + i} class=${limits[i] ? "wrong" : ""}>
      ${one.url && !original ? html`<img src=${one.url} alt=${one.file.name} />` : html`<span class="file-icon"><${Icon} name="file" size=${28} /></span>`}
      <span class="file-text"><b dir="auto">${one.file.name}</b><small>${limits[i] ? t("too_large", { mb: limits[i] ?? 0 }) : sizeOf(one.file.size)}</small></span>
      <${IconButton} icon="close" label=${t("remove_file", { name: one.file.name })} onClick=${() => remove(one)} />
    </li>`)}</ul>
    <div class="chosen-more">
      <label class="button" for="more-files"><${Icon} name="plus" />${t("more_files")}</label><input id="more-files" class="unseen" type="file" multiple onChange=${add} disabled=${items.length >= MOST_FILES} />
      ${pictures > 0 && html`<label class="check"><input type="checkbox" checked=${original} onChange=${(/** @type {any} */ event) => setOriginal(event.target.checked)} />${t("as_file")}</label>`}
    </div>
    ${original && html`<p class="rule">${t("as_file_rule")}</p>`}
    <label for="caption">${t("caption")}</label>
    <textarea id="caption" class="field" rows="2" dir="auto" maxlength="4000" value=${caption} onInput=${(/** @type {any} */ event) => setCaption(event.target.value)} onKeyDown=${onKeyDown}></textarea>
    <div class="buttons"><button type="button" onClick=${close}>${t("cancel")}</button><button type="submit" class="primary" disabled=${limits.some(Boolean)}><${Icon} name="send" />${t("send")}</button></div>
  </form></${Dialog}>`;
}

/** A picture from the camera. `argument`: { taken(file) } @param {Props} props */
function Camera({ close, argument }) {
  const [ready, setReady] = useState(false);
  const [failed, setFailed] = useState("");
  /** @type {{ current: any }} */
  const video = useRef(null);
  useEffect(() => {
    let gone = false;
    /** @type {MediaStream | undefined} */
    let stream;
    const end = () => stream?.getTracks().forEach((track) => track.stop());
    const asked = navigator.mediaDevices?.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 }, height: { ideal: 1080 } } });
    if (!asked) return setFailed(t("no_camera"));
    asked.then((found) => {
      stream = found;
      if (gone) return end();
      video.current.srcObject = found;
      return video.current.play();
    }).catch((error) => setFailed(t(error?.name === "NotAllowedError" ? "camera_refused" : "no_camera")));
    return () => {
      gone = true;
      end();
    };
  }, []);
  const take = () => {
    const { videoWidth: width, videoHeight: height } = video.current;
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    canvas.getContext("2d")?.drawImage(video.current, 0, 0);
    canvas.toBlob((blob) => {
      if (!blob) return;
      const at = new Date().toISOString().slice(0, 19).replaceAll(":", "-");
      argument.taken(new File([blob], `${at}.jpg`, { type: "image/jpeg" }));
    }, "image/jpeg", 0.9);
  };
  return html`<${Dialog} title=${t("take_picture")} close=${close} className="wide">
    ${failed ? html`<p class="notice" role="alert">${failed}</p>` : html`<video class="finder" ref=${video} muted playsinline aria-label=${t("camera")} onLoadedData=${() => setReady(true)}></video>`}
    <div class="buttons"><button type="button" onClick=${close}>${t("cancel")}</button>${!failed && html`<button type="button" class="primary" disabled=${!ready} onClick=${take}><${Icon} name="camera" />${t("take_it")}</button>`}</div>
  </${Dialog}>`;
}

/** A message's pictures in full, one at a time. `argument`: { files, at, where, message } @param {Props} props */
function Picture({ session, close, argument }) {
  const { files, where } = argument;
  const [at, setAt] = useState(argument.at);
  const file = files[at];
  const step = (/** @type {number} */ by) => setAt((/** @type {number} */ now) => Math.min(files.length - 1, Math.max(0, now + by)));
  useEffect(() => {
    const onKeyDown = (/** @type {KeyboardEvent} */ event) => {
      const by = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
      if (by) step(document.documentElement.dir === "rtl" ? -by : by);
    };
    document.addEventListener("keydown", onKeyDown);
    return () => document.removeEventListener("keydown", onKeyDown);
  }, []);
  const name = file.name || t("kind_image");
  return html`<${Dialog} title=${name} close=${close} className="viewer">
    <div class="viewed">
      <${Full} key=${file.sha256} file=${file} where=${where} session=${session} name=${name} />
      ${files.length > 1 && html`<div class="buttons"><${IconButton} icon="back" label=${t("picture_before")} disabled=${at === 0} onClick=${() => step(-1)} /><span class="muted">${t("picture_of", { at: at + 1, all: files.length })}</span><${IconButton} icon="next" label=${t("picture_after")} disabled=${at === files.length - 1} onClick=${() => step(1)} /></div>`}
    </div>
  </${Dialog}>`;
}

/** @param {{ file: import("./files.js").Shown, where: string, session: import("./session.js").Session, name: string }} props */
function Full({ file, where, session, name }) {
  const [link, again] = useLink(session, file, where);
  const [late, setLate] = useState(false);
  useLayoutEffect(() => {
    const timer = setTimeout(() => setLate(true), 400);
    return () => clearTimeout(timer);
  }, []);
  if (!link) return html`<p class="hint">${late ? t("loading") : " "}</p>`;
  return html`<img src=${sharp(link, 1600)} alt=${name} width=${file.width ?? undefined} height=${file.height ?? undefined} onError=${again} />
    <p class="viewer-acts"><a href=${link.url} download=${file.name || undefined} target="_blank" rel="noopener"><${Icon} name="save" />${t("save_picture")}</a></p>`;
}
