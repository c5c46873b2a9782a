/**
 * Recording a voice message: it takes the place of the field for texts.
 *
 * *asking → recording → listening (before it is sent)*. The microphone is on only while recording. Levels are measured while it
 * records, and go with the message as its waveform.
 */

import { Voice, Wave, resampled } from "./files.js";
import { length } from "./format.js";
import { t } from "./strings.js";
import { html, Icon, IconButton, useEffect, useRef, useState } from "./ui.js";

const LONGEST_MS = 10 * 60_000;
const EVERY_MS = 60;
const SHOWN = 40;
const LEVELS = 64; // of the message; the server takes at most 100
const SHORTEST_MS = 400;
const TYPES = ["audio/webm;codecs=opus", "audio/mp4", "audio/ogg;codecs=opus"];

/** @typedef {{ blob: Blob, kind: "voice", duration: number, waveform: number[] }} Recorded */

/** @param {{ send: (recorded: Recorded) => void, close: () => void, say: (text: string) => void }} props */
export function Recorder({ send, close, say }) {
  const [state, setState] = useState(/** @type {"asking" | "recording" | "listening"} */ ("asking"));
  const [at, setAt] = useState(0);
  const [recorded, setRecorded] = useState(/** @type {(Recorded & { url: string }) | undefined} */ (undefined));
  /** @type {{ current: any }} */
  const recording = useRef(undefined);
  /** @type {{ current: any }} */
  const main = useRef(null);

  useEffect(() => {
    let gone = false;
    record((ms) => setAt(ms)).then(
      (found) => {
        if (gone) return found.cancel();
        recording.current = found;
        return setState("recording");
      },
      (error) => {
        if (gone) return;
        say(t(error?.name === "NotAllowedError" ? "microphone_refused" : "no_microphone"));
        close();
      },
    );
    return () => {
      gone = true;
      recording.current?.cancel();
      recording.current = undefined;
    };
  }, []);
  useEffect(() => main.current?.focus(), [state]);
  useEffect(() => () => void (recorded && URL.revokeObjectURL(recorded.url)), [recorded]);
  useEffect(() => {
    if (state === "recording" && at >= LONGEST_MS) void stop(false);
  }, [at]);

  const stop = async (/** @type {boolean} */ atOnce) => {
    const found = await recording.current?.stop();
    if (!recording.current) return undefined; // it was stopped twice, or is discarded
    recording.current = undefined;
    if (found.duration < SHORTEST_MS) {
      say(t("too_short"));
      return close();
    }
    if (atOnce) return done(found);
    setRecorded({ ...found, url: URL.createObjectURL(found.blob) });
    return setState("listening");
  };
  const done = (/** @type {Recorded} */ { blob, kind, duration, waveform }) => {
    send({ blob, kind, duration, waveform });
    close();
  };
  const onKeyDown = (/** @type {any} */ event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    close();
  };

  return html`<div class="composer-line recorder" role="group" aria-label=${t("voice_message")} onKeyDown=${onKeyDown}>
    <${IconButton} icon="trash" label=${t("discard")} onClick=${close} />
    ${state === "asking" && html`<span class="recording" role="status">${t("asking_microphone")}</span>`}
    ${state === "recording" && html`<span class="recording"><span class="live-dot" aria-hidden="true"></span><span class="length" role="timer" aria-label=${t("recording")}>${length(at / 1000)}</span><${Wave} levels=${recording.current?.recent() ?? []} /></span>
      <button type="button" class="icon-button" ref=${main} aria-label=${t("stop")} title=${t("stop")} onClick=${() => void stop(false)}><${Icon} name="stop" /></button>`}
    ${state === "listening" && recorded && html`<${Voice} src=${recorded.url} duration=${recorded.duration} waveform=${recorded.waveform} />`}
    <button type="button" class="send" disabled=${state === "asking"} ref=${state === "listening" ? main : undefined} aria-label=${t("send")} title=${t("send")} onClick=${() => (recorded ? done(recorded) : void stop(true))}><${Icon} name="send" /></button>
  </div>`;
}

/** @param {(ms: number) => void} progress */
async function record(progress) {
  if (!navigator.mediaDevices || !globalThis.MediaRecorder) throw new TypeError("this browser cannot record");
  const stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true } });
  try {
    return recordingOf(stream, progress);
  } catch (error) {
    stream.getTracks().forEach((track) => track.stop());
    throw error;
  }
}

/** @param {MediaStream} stream @param {(ms: number) => void} progress */
function recordingOf(stream, progress) {
  const mimeType = TYPES.find((type) => MediaRecorder.isTypeSupported(type)) ?? "";
  const recorder = new MediaRecorder(stream, { ...(mimeType ? { mimeType } : {}), audioBitsPerSecond: 32_000 });
  const context = new AudioContext();
  const analyser = new AnalyserNode(context, { fftSize: 4096 });
  context.createMediaStreamSource(stream).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  /** @type {number[]} */
  const levels = [];
  /** @type {Blob[]} */
  const parts = [];
  const began = performance.now();
  const timer = setInterval(() => {
    analyser.getFloatTimeDomainData(samples);
    const loud = Math.sqrt(samples.reduce((sum, one) => sum + one * one, 0) / samples.length);
    levels.push(Math.min(255, Math.round(255 * Math.min(1, Math.sqrt(loud * 2.5)))));
    progress(performance.now() - began);
  }, EVERY_MS);
  recorder.ondataavailable = ({ data }) => data.size && parts.push(data);
  /** All of it; a recorder also stops by itself, if the microphone is taken away. @type {Promise<Recorded>} */
  const whole = new Promise((resolve) => {
    recorder.onstop = () => {
      const duration = Math.round(performance.now() - began);
      clearInterval(timer);
      stream.getTracks().forEach((track) => track.stop());
      void context.close();
      const [type = ""] = (recorder.mimeType || mimeType).split(";");
      resolve({ blob: new Blob(parts, { type }), kind: "voice", duration, waveform: resampled(levels.length ? levels : [0], LEVELS) });
    };
  });
  const stop = () => {
    if (recorder.state !== "inactive") recorder.stop();
    return whole;
  };
  recorder.start(1000);
  return {
    /** The last levels, for the view. */
    recent: () => [...new Array(SHOWN).fill(0), ...levels].slice(-SHOWN),
    cancel() {
      void stop();
      stream.getTracks().forEach((track) => track.stop());
    },
    stop,
  };
}
