/** Gateways and routers with their load and lag. */

import { useEffect } from "../page/vendor/hooks.js";
import { html, useLoaded, when } from "./parts.js";

const EVERY_MS = 5000;

/** @param {{ api: import("./api.js").Api }} props */
export function Nodes({ api }) {
  const { found, error, again } = useLoaded(() => api.call("GET", "/admin/nodes"), []);
  useEffect(() => {
    const timer = setInterval(() => document.hidden || again(), EVERY_MS);
    return () => clearInterval(timer);
  }, []);
  if (!found) return html`<section class="card"><h2>Nodes</h2>${error ? html`<p class="error" role="alert">${error}</p>` : html`<p class="soft" role="status">Loading …</p>`}</section>`;
  const { gateways, routers, backlog } = found;
  return html`<section class="card" aria-labelledby="gateways">
    <h2 id="gateways">Gateways</h2>
    ${error && html`<p class="error" role="alert">${error}</p>`}
    <div class="wide" tabindex="0" role="region" aria-label="Table: gateways"><table>
      <thead><tr><th scope="col">Gateway</th><th scope="col">State</th><th scope="col" class="number">Connections</th><th scope="col" class="number">CPU</th><th scope="col" class="number">Lag</th><th scope="col">Since</th></tr></thead>
      <tbody>${gateways.map((/** @type {any} */ one) => html`<tr key=${one.node}>
        <td>${one.url || "–"}<div class="mono soft">${one.node}</div></td>
        <td>${!one.alive ? html`<span class="bad-text">gone</span>` : one.draining ? "draining" : html`<span class="good">alive</span>`}</td>
        <td class="number">${one.connections}</td><td class="number">${one.cpu} %</td><td class="number">${one.lag_ms} ms</td><td>${when(one.started)}</td>
      </tr>`)}</tbody>
    </table></div>
  </section>
  <section class="card" aria-labelledby="routers">
    <h2 id="routers">Routers</h2>
    <p>${backlog.conversations ? `${backlog.conversations} conversations wait for routers, the oldest for ${(backlog.oldest_ms / 1000).toFixed(1)} s.` : "Nothing waits for routers."}</p>
    <div class="wide" tabindex="0" role="region" aria-label="Table: routers"><table>
      <thead><tr><th scope="col">Router</th><th scope="col" class="number">CPU</th><th scope="col" class="number">Lag</th></tr></thead>
      <tbody>${routers.map((/** @type {any} */ one) => html`<tr key=${one.node}><td class="mono">${one.node}</td><td class="number">${one.cpu} %</td><td class="number">${one.lag_ms} ms</td></tr>`)}</tbody>
    </table></div>
  </section>`;
}
