// The OpenID provider of scripts/oidc.sh: node oidc-provider.mjs NODE_MODULES PORT
import crypto from "node:crypto";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [modules, port] = process.argv.slice(2);
const found = createRequire(`${modules}/`).resolve("oidc-provider");
const { default: Provider } = await import(pathToFileURL(found));

const client = (id, more) => ({
    client_id: id,
    redirect_uris: ["https://perennial.example/api/v1/sessions/oidc/callback"],
    grant_types: ["authorization_code"],
    response_types: ["code"],
    ...more,
});

// Another one at every start.
const makeKey = () => crypto.generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey;
const key = makeKey();
const kid = crypto.randomUUID();

const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
const sign = (header, claims, by) => {
    const text = `${part(header)}.${part(claims)}`;
    return `${text}.${by ? crypto.sign("sha256", Buffer.from(text), by).toString("base64url") : ""}`;
};

// What is wrong with the token of somebody whose name ends with "--KIND".
const spoilt = {
    nonce: (header, claims) => sign(header, { ...claims, nonce: "another" }, key),
    "no-nonce": (header, { nonce, ...claims }) => sign(header, claims, key),
    audience: (header, claims) => sign(header, { ...claims, aud: "another" }, key),
    "two-audiences": (header, claims) => sign(header, { ...claims, aud: [claims.aud, "another"] }, key),
    issuer: (header, claims) => sign(header, { ...claims, iss: "http://127.0.0.1:1" }, key),
    expired: (header, claims) => sign(header, { ...claims, exp: claims.iat - 60 }, key),
    "other-key": (header, claims) => sign(header, claims, makeKey()),
    unsigned: (header, claims) => sign({ ...header, alg: "none" }, claims),
    subject: (header, claims) => sign(header, { ...claims, sub: "somebody else" }, key),
    none: (header, claims) => sign(header, claims, key),
};

const provider = new Provider(`http://127.0.0.1:${port}`, {
    clients: [
        client("perennial", { client_secret: "a secret of the tests" }),
        client("perennial-public", { token_endpoint_auth_method: "none" }),
    ],
    jwks: { keys: [{ ...key.export({ format: "jwk" }), kid, use: "sig", alg: "RS256" }] },
    claims: { openid: ["sub"], email: ["email", "email_verified"] },
    pkce: { required: () => true, methods: ["S256"] },
    findAccount: (_context, id) => ({
        accountId: id,
        claims: () => ({
            sub: id,
            email: { kelvin: "an\u212A@example.org", nobody: "" }[id] ?? `${id.replace(/-.*$/, "")}@Example.org`,
            email_verified: !id.endsWith("-unverified"),
        }),
    }),
});
provider.use(async (context, next) => {
    await next();
    const token = context.path === "/token" && context.body?.id_token;
    if (!token) return;
    const [header, claims] = token.split(".").slice(0, 2).map((text) => JSON.parse(Buffer.from(text, "base64url")));
    const kind = claims.sub.split("--")[1];
    if (kind) context.body.id_token = spoilt[kind](header, claims);
});
provider.listen(Number(port), "127.0.0.1");
