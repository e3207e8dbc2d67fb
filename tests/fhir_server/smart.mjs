// A SMART authorization server (oidc-provider) and, behind it, a FHIR server that asks for its tokens.
// Arguments: address of the FHIR server, JSON Web Key Set of the one client. Prints its base address when it
// listens. Used by tests only.
import express from 'express';
import Provider from 'oidc-provider';

const [fhirUrl, jwks] = process.argv.slice(2);
const scopes = ['system/DiagnosticReport.crus', 'system/Observation.crus', 'system/Device.crus',
  'system/Provenance.crs', 'system/Patient.rs'];
const app = express();
const listening = app.listen(0, '127.0.0.1', () => {
  const base = `http://127.0.0.1:${listening.address().port}`;
  const provider = new Provider(`${base}/auth`, {
    clients: [
      {
        client_id: 'marrow-node',
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
        token_endpoint_auth_method: 'private_key_jwt',
        jwks: JSON.parse(jwks),
        scope: scopes.join(' '),
      },
    ],
    scopes,
    ttl: { ClientCredentials: 600 },
    features: { clientCredentials: { enabled: true }, devInteractions: { enabled: false } },
    enabledJWA: { clientAuthSigningAlgValues: ['RS384', 'ES384'] },
  });
  let issued = 0;
  let revokedUpTo = 0;
  const numbers = new Map(); // token → how many had been issued when it was first shown
  provider.on('client_credentials.saved', () => { issued += 1; });
  app.get('/fhir/.well-known/smart-configuration', (_, response) => {
    response.json({
      token_endpoint: `${base}/auth/token`,
      grant_types_supported: ['client_credentials'],
      token_endpoint_auth_methods_supported: ['private_key_jwt'],
      token_endpoint_auth_signing_alg_values_supported: ['RS384', 'ES384'],
      scopes_supported: scopes,
      capabilities: ['client-confidential-asymmetric'],
    });
  });
  // For tests: how many tokens were issued; and an end to all of them.
  app.get('/issued', (_, response) => response.json(issued));
  app.post('/revoke', (_, response) => {
    revokedUpTo = issued;
    response.status(204).end();
  });
  app.use('/auth', provider.callback());
  app.use('/fhir', express.raw({ type: () => true, limit: '50mb' }), async (request, response) => {
    const token = (request.headers.authorization ?? '').replace(/^Bearer /, '');
    const found = await provider.ClientCredentials.find(token);
    if (found && !numbers.has(token)) numbers.set(token, issued);
    if (!found || numbers.get(token) <= revokedUpTo) {
      response.status(401).json({ resourceType: 'OperationOutcome', issue: [{ severity: 'error', code: 'login' }] });
      return;
    }
    if (!(found.scope ?? '').includes('system/DiagnosticReport.crus')) {
      response.status(403).json({ resourceType: 'OperationOutcome', issue: [{ severity: 'error', code: 'forbidden' }] });
      return;
    }
    const headers = Object.fromEntries(
      ['accept', 'content-type', 'prefer', 'if-none-exist', 'if-match']
        .filter((name) => request.headers[name])
        .map((name) => [name, request.headers[name]])
    );
    const body = request.body?.length ? request.body : undefined;
    const answer = await fetch(fhirUrl + request.originalUrl.replace(/^\/fhir/, ''), {
      method: request.method, headers, body,
    });
    response.status(answer.status).type(answer.headers.get('content-type') ?? 'application/fhir+json');
    response.send(Buffer.from(await answer.arrayBuffer()));
  });
  console.log(base);
});
