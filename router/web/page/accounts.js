/**
 * The accounts that this browser knows, and the one of this tab.
 *
 * A token is a row of IndexedDB and nowhere else. Which account a tab uses is in its `sessionStorage`, so that two tabs can be
 * two people. Tabs tell each other on a channel when an account is logged out. A token that could not be ended then (there was
 * no connection) waits in a database of its own, which exists only meanwhile, until the server has ended it or it expires.
 */

/**
 * @typedef {object} Account
 * @property {string} user
 * @property {string} token
 * @property {number} expiresAt
 * @property {number} usedAt
 */

const MINE = "linnet-account";
const ROWS = "accounts";
const ENDED = "linnet-ended";
const RENEW_BEFORE_MS = 60_000;
const LOGOUT_MS = 3000;
const END_AGAIN_MS = 30_000;

export class Refusal extends Error {
  /** @param {string} code @param {string} message @param {number} retryAfter */
  constructor(code, message, retryAfter) {
    super(message);
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** @type {Promise<IDBDatabase> | undefined} */
let opened;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("linnet-web", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(ROWS, { keyPath: "user" });
    request.onsuccess = () => {
      request.result.onclose = () => (opened = undefined); // wiped by the browser
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
  });
  return opened;
}

/** @template T @param {IDBTransactionMode} mode @param {(rows: IDBObjectStore) => IDBRequest<T>} work @returns {Promise<T>} */
async function rows(mode, work) {
  const store = (await database()).transaction(ROWS, mode).objectStore(ROWS);
  const request = work(store);
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** All accounts, the one used last first. @returns {Promise<Account[]>} */
export async function accounts() {
  /** @type {Account[]} */
  const found = await rows("readonly", (store) => store.getAll());
  return found.sort((a, b) => b.usedAt - a.usedAt);
}

/** The account of this tab: the one it used before a reload, else the one used last. @returns {Promise<Account | undefined>} */
export async function accountOfTab() {
  const mine = sessionStorage.getItem(MINE);
  if (mine === "") return undefined;
  const known = await accounts();
  return mine === null ? known[0] : known.find(({ user }) => user === mine);
}

/** Use this account in this tab; an empty name asks who it is. @param {string} user */
export function useInTab(user) {
  sessionStorage.setItem(MINE, user);
}

/** @param {string} method @param {string} path @param {unknown} body @param {string} [token] */
async function call(method, path, body, token) {
  let answer;
  try {
    const headers = { "Content-Type": "application/json", ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    answer = await fetch(path, { method, headers, body: JSON.stringify(body) });
  } catch {
    throw new Refusal("unavailable", "", 0);
  }
  const text = await answer.text();
  if (answer.ok) return text ? JSON.parse(text) : undefined;
  const { error = {} } = text.startsWith("{") ? JSON.parse(text) : {};
  throw new Refusal(error.code ?? "internal", error.message ?? "", Number(answer.headers.get("Retry-After") ?? 0));
}

/** @param {string} user @param {string} password */
export function register(user, password) {
  return call("POST", "/v1/accounts", { user, password });
}

/** Log in, keep the token, and use the account in this tab. @param {string} user @param {string} password @returns {Promise<Account>} */
export async function login(user, password) {
  const before = (await accounts()).find((account) => account.user === user);
  const answer = await call("POST", "/v1/login", { user, password, device: "web" }, before?.token);
  useInTab(user);
  return keep({ user, token: answer.token, expiresAt: answer.expires_at, usedAt: Date.now() });
}

/** @param {Account} account */
async function keep(account) {
  await rows("readwrite", (store) => store.put(account));
  return account;
}

/** The account of this tab as it was used last: a browser that wipes its storage does not log the tab out. @type {Account | undefined} */
let held;

/**
 * The token for a connection: the one that is kept, renewed if it was refused or is about to expire.
 *
 * @param {string} user
 * @param {string} reason
 */
export async function tokenOf(user, reason) {
  const account = (await accounts()).find((one) => one.user === user) ?? held;
  if (account?.user === user) held = account;
  if (account?.user !== user) throw new Refusal("unauthorized", "logged out", 0);
  if (reason === "connect" && account.expiresAt - Date.now() > RENEW_BEFORE_MS) return account.token;
  try {
    const { token, expires_at: expiresAt } = await call("POST", "/v1/tokens/renew", {}, account.token);
    return (await keep({ ...account, token, expiresAt, usedAt: Date.now() })).token;
  } catch (error) {
    if (error instanceof Refusal && error.code === "unavailable") throw error;
    return account.token; // it is refused by the gateway, and then the user logs in again
  }
}

const channel = new BroadcastChannel("linnet-web");

/** @param {(user: string) => void} listener */
export function onLogout(listener) {
  channel.onmessage = ({ data }) => listener(String(data.logout));
}

/** End the token of an account, and delete all that this browser keeps of it. Its tabs have closed their stores. @param {string} user */
export async function forget(user) {
  held = undefined;
  const account = (await accounts()).find((one) => one.user === user);
  await rows("readwrite", (store) => store.delete(user));
  channel.postMessage({ logout: user }); // only now: the other tabs load the login page, which lists the accounts
  if (account) await end(account);
  const stores = `linnet:${location.origin}:${user}:`;
  for (const { name = "" } of await indexedDB.databases()) {
    if (name.startsWith(stores)) indexedDB.deleteDatabase(name);
  }
  for (const key of Object.keys(sessionStorage)) if (key.startsWith(`linnet-draft ${user} `)) sessionStorage.removeItem(key);
  useInTab("");
}

/** End the token of an account; if the server cannot be reached now, the token is kept to end it later. @param {Account} account */
async function end({ token, expiresAt }) {
  const keeping = alone(() => withEndedTokens("readwrite", (tokens) => tokens.put({ token, expiresAt })));
  const kept = await keeping.then(() => true, () => false); // a browser without space refuses it
  const ending = kept ? endTokens().catch(() => undefined) : endToken(token);
  await Promise.race([ending, new Promise((resolve) => setTimeout(resolve, LOGOUT_MS))]);
}

/**
 * Run `work` while no other tab keeps a token to end it later, or deletes the database of these tokens.
 *
 * @template T @param {() => Promise<T>} work @returns {Promise<T>}
 */
async function alone(work) {
  return navigator.locks ? navigator.locks.request(ENDED, work) : work(); // without TLS a browser has no locks
}

/**
 * Use the tokens that the server still has to end. The database is closed after each use, so that it can be deleted.
 *
 * @template T @param {IDBTransactionMode} mode @param {(tokens: IDBObjectStore) => IDBRequest<T>} work @returns {Promise<T>}
 */
async function withEndedTokens(mode, work) {
  /** @type {IDBDatabase} */
  const opened = await new Promise((resolve, reject) => {
    const request = indexedDB.open(ENDED, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(ROWS, { keyPath: "token" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return new Promise((resolve, reject) => {
    const transaction = opened.transaction(ROWS, mode);
    const request = work(transaction.objectStore(ROWS));
    transaction.oncomplete = () => (opened.close(), resolve(request.result));
    transaction.onabort = () => (opened.close(), reject(transaction.error));
  });
}

/** The timer of the next try to end tokens: one per page. @type {number | undefined} */
let again;

/** Let the server end the tokens that were logged out here; those that it cannot end now are tried again. */
export async function endTokens() {
  if (!(await indexedDB.databases()).some(({ name }) => name === ENDED)) return;
  /** @type {string[]} */
  const over = [];
  for (const { token, expiresAt } of await withEndedTokens("readonly", (tokens) => tokens.getAll())) {
    if (expiresAt <= Date.now() || (await endToken(token))) over.push(token);
  }
  const left = await alone(async () => {
    for (const token of over) await withEndedTokens("readwrite", (tokens) => tokens.delete(token));
    const count = await withEndedTokens("readonly", (tokens) => tokens.count());
    if (count === 0) await deleteEndedTokens();
    return count;
  });
  clearTimeout(again);
  if (left > 0) again = setTimeout(() => void endTokens().catch(() => undefined), END_AGAIN_MS);
}

/** Delete the database. If a page still has it open, the deletion waits for that page, and a later opening for the deletion. */
function deleteEndedTokens() {
  return new Promise((resolve) => {
    const request = indexedDB.deleteDatabase(ENDED);
    request.onsuccess = request.onerror = request.onblocked = resolve;
  });
}

/** Let the server end a token. Return whether it has ended, now or before. @param {string} token */
function endToken(token) {
  return call("POST", "/v1/logout", {}, token).then(
    () => true,
    (error) => error.code === "unauthorized" || error.code === "token_expired",
  );
}
