/** Dialogs of moderation: mute or ban a member, the rules of a conversation, who is banned, and reporting. */

import { clock, day } from "./format.js";
import { Face, nameOf } from "./profiles.js";
import { t } from "./strings.js";
import { Dialog, html, useEffect, useState, whyOf } from "./ui.js";

/** @typedef {{ session: import("./session.js").Session, show: any, say: (text: string) => void, close: () => void, argument: any }} Props */

/** @type {Record<string, (props: any) => any>} */
export const DIALOGS = { restrain: Restrain, bans: Bans, rules: Rules, report: Report };

const HOUR_MS = 3_600_000;
/** How long a mute or a ban lasts, in hours; 0: for ever. */
const HOURS = [1, 24, 24 * 7, 0];
/** Seconds between two messages of a member. */
const SLOW = [0, 5, 10, 30, 60, 300, 900, 3600];
const LONGEST = 500;

/** @param {string} id */
function pathOf(id) {
  return `/v1/conversations/${encodeURIComponent(id)}`;
}

/** Mute or ban a user. `argument`: { id, user, what } @param {Props} props */
function Restrain({ session, close, say, argument }) {
  const { id, user, what } = argument;
  const [hours, setHours] = useState(HOURS[1] ?? 0);
  const [reason, setReason] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState("");
  const go = async (/** @type {Event} */ event) => {
    event.preventDefault();
    setBusy(true);
    setError("");
    const where = what === "ban" ? `/bans/${user}` : `/members/${user}/mute`;
    try {
      await session.client.call("PUT", pathOf(id) + where, { until: hours ? Date.now() + hours * HOUR_MS : null, reason: reason.trim() });
      say(t(what === "ban" ? "was_banned" : "was_muted", { user: nameOf(user) }));
      close();
    } catch (refusal) {
      setError(t("refused", { why: whyOf(refusal) }));
      setBusy(false);
    }
  };
  return html`<${Dialog} title=${t(what === "ban" ? "ban_user" : "mute_user", { user: nameOf(user) })} close=${close}><form onSubmit=${(/** @type {Event} */ event) => void go(event)}>
    <p>${t(what === "ban" ? "ban_text" : "mute_text")}</p>
    <label for="hours">${t("how_long")}</label>
    <select id="hours" value=${hours} onChange=${(/** @type {any} */ event) => setHours(Number(event.target.value))}>${HOURS.map((one) => html`<option key=${one} value=${one} selected=${one === hours}>${one === 0 ? t("for_ever") : one < 24 ? t("hours", { count: one }) : t("days", { count: one / 24 })}</option>`)}</select>
    <label for="reason">${t("reason")}</label>
    <textarea id="reason" class="field" rows="2" dir="auto" maxlength=${LONGEST} aria-describedby="reason-rule" value=${reason} onInput=${(/** @type {any} */ event) => setReason(event.target.value)}></textarea>
    <p id="reason-rule" class="rule">${t("reason_rule")}</p>
    ${error && html`<p class="notice" role="alert">${error}</p>`}
    <div class="buttons"><button type="button" onClick=${close}>${t("cancel")}</button><button type="submit" class="primary danger" disabled=${busy}>${busy ? t("one_moment") : t(what === "ban" ? "ban" : "mute")}</button></div>
  </form></${Dialog}>`;
}

/** The rules of a group or channel. `argument`: { id } @param {Props} props */
function Rules({ session, close, say, argument }) {
  const [found, setFound] = useState(/** @type {any} */ (undefined));
  const [why, setWhy] = useState("");
  const [busy, setBusy] = useState("");
  useEffect(() => {
    session.client.call("GET", pathOf(argument.id)).then(setFound, (error) => setWhy(whyOf(error)));
  }, []);
  const change = async (/** @type {string} */ field, /** @type {string | number} */ value) => {
    const before = found;
    setFound({ ...found, [field]: value });
    setBusy(field);
    try {
      setFound(await session.client.call("PATCH", pathOf(argument.id), { [field]: value }));
      say(t("saved"));
    } catch (error) {
      setFound(before);
      say(t("refused", { why: whyOf(error) }));
    }
    setBusy("");
  };
  const seconds = (/** @type {number} */ one) => (one === 0 ? t("slow_none") : one < 60 ? t("seconds", { count: one }) : one < 3600 ? t("minutes", { count: one / 60 }) : t("hours", { count: one / 3600 }));
  const setting = (/** @type {string} */ field, /** @type {[string | number, string][]} */ values) => html`<div class="setting">
    <label for=${`rule-${field}`}>${t(`rule_${field}`)}</label>
    <select id=${`rule-${field}`} disabled=${busy === field} value=${found[field]} onChange=${(/** @type {any} */ event) => void change(field, typeof found[field] === "number" ? Number(event.target.value) : event.target.value)}>${values.map(([value, label]) => html`<option key=${value} value=${value} selected=${found[field] === value}>${label}</option>`)}</select>
  </div>`;
  return html`<${Dialog} title=${t("rules")} close=${close}>
    ${why && html`<p class="notice" role="alert">${t("refused", { why })}</p>`}
    ${!found && !why && html`<p class="hint">${t("loading")}</p>`}
    ${found && html`
      ${setting("posting", [["all", t("those_members")], ["admins", t("those_admins")]])}
      ${setting("adding", [["admins", t("those_admins")], ["all", t("those_members")]])}
      ${setting("reacting", [["all", t("those_all")], ["members", t("those_members")]])}
      ${setting("slow_s", [...new Set([...SLOW, found.slow_s])].sort((a, b) => a - b).map((one) => [one, seconds(one)]))}
    `}
  </${Dialog}>`;
}

/** Who is banned. `argument`: { id } @param {Props} props */
function Bans({ session, close, say, argument }) {
  const [bans, setBans] = useState(/** @type {{ user: string, until: number | null, reason: string }[] | undefined} */ (undefined));
  const [why, setWhy] = useState("");
  const load = async () => {
    let page = { bans: [], more: true, cursor: 0 };
    const all = new Map();
    while (page.more) {
      page = await session.client.call("GET", `${pathOf(argument.id)}/bans?cursor=${page.cursor}`);
      for (const ban of /** @type {any[]} */ (page.bans)) all.set(ban.user, ban);
    }
    setBans([...all.values()].sort((a, b) => a.user.localeCompare(b.user)));
  };
  useEffect(() => void load().catch((error) => setWhy(whyOf(error))), []);
  const unban = async (/** @type {string} */ user) => {
    try {
      await session.client.call("DELETE", `${pathOf(argument.id)}/bans/${user}`);
      await load();
    } catch (error) {
      say(t("refused", { why: whyOf(error) }));
    }
  };
  return html`<${Dialog} title=${t("bans")} close=${close}>
    ${why && html`<p class="notice" role="alert">${t("refused", { why })}</p>`}
    ${!bans && !why && html`<p class="hint">${t("loading")}</p>`}
    ${bans?.length === 0 && html`<p class="hint">${t("nobody_banned")}</p>`}
    <ul class="members">${bans?.map(({ user, until, reason }) => html`<li key=${user}><${Face} user=${user} size="small" /><span><b dir="auto">${nameOf(user)}</b><small dir="auto">${until ? t("until", { when: `${day(until)}, ${clock(until)}` }) : t("for_ever")}${reason && ` · ${reason}`}</small></span><button type="button" class="small-button" aria-label=${t("unban_user", { user })} onClick=${() => void unban(user)}>${t("unban")}</button></li>`)}</ul>
  </${Dialog}>`;
}

/** Report a message or a person to those who run the deployment. `argument`: { conversation, seq, user, text } @param {Props} props */
function Report({ session, close, say, argument }) {
  const { conversation, seq, user, text } = argument;
  const [reason, setReason] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState("");
  const go = async (/** @type {Event} */ event) => {
    event.preventDefault();
    setBusy(true);
    setError("");
    try {
      await session.client.call("POST", "/v1/reports", { reason: reason.trim(), ...(seq === undefined ? { user } : { conversation, seq }) });
      say(t("reported"));
      close();
    } catch (refusal) {
      setError(t("refused", { why: whyOf(refusal) }));
      setBusy(false);
    }
  };
  return html`<${Dialog} title=${seq === undefined ? t("report_user", { user: nameOf(user) }) : t("report_message")} close=${close}><form onSubmit=${(/** @type {Event} */ event) => void go(event)}>
    ${text && html`<blockquote class="forward-text" dir="auto">${text}</blockquote>`}
    <p>${t("report_text")}</p>
    <label for="reason">${t("report_reason")}</label>
    <textarea id="reason" class="field" rows="3" dir="auto" maxlength=${LONGEST} value=${reason} onInput=${(/** @type {any} */ event) => setReason(event.target.value)}></textarea>
    ${error && html`<p class="notice" role="alert">${error}</p>`}
    <div class="buttons"><button type="button" onClick=${close}>${t("cancel")}</button><button type="submit" class="primary danger" disabled=${busy || !reason.trim()}>${busy ? t("one_moment") : t("report")}</button></div>
  </form></${Dialog}>`;
}
