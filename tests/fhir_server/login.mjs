// An OpenID Connect provider (oidc-provider) with its own sign-in pages, whose one client is the node's pages.
// Arguments: redirect address and secret of the client. Whoever signs in is Anna; her name as user tells her roles,
// with a comma between. Prints its address when it listens. Used by tests only.
import express from 'express';
import Provider from 'oidc-provider';

const [redirectUri, secret] = process.argv.slice(2);
const app = express();
const listening = app.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${listening.address().port}`;
  const provider = new Provider(issuer, {
    clients: [{ client_id: 'marrow-node-pages', client_secret: secret, redirect_uris: [redirectUri] }],
    claims: { openid: ['sub', 'roles', 'organization'], profile: ['name'] },
    conformIdTokenClaims: false,
    pkce: { required: () => true },
    findAccount: (_, id) => ({
      accountId: id,
      claims: () => ({ sub: id, roles: id.split(','), name: 'Lee^Anna^^Dr.', organization: 'Hospital' }),
    }),
  });
  app.use(provider.callback());
  console.log(issuer);
});
