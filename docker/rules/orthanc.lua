-- Orthanc: send every slide that has come in to marrow-node.
--
-- Put this file's path into "LuaScripts" of Orthanc's configuration, and beside it
--   "MarrowNode" : { "Url" : "http://marrow-node:8080", "Key" : "mnk_…" }
-- with a key from 'marrow-node key orthanc --role submit'. Orthanc stands still until the answer
-- comes: the node answers at once. The rule also fires for the node's own results, and again when
-- a slide is sent again; only slides (SM) are passed on, and the same slide stays one job.

function OnStableSeries(seriesId, tags, metadata)
  if tags['Modality'] ~= 'SM' then
    return
  end
  local study = ParseJson(RestApiGet('/series/' .. seriesId .. '/study'))
  local node = GetOrthancConfiguration()['MarrowNode']
  local body = DumpJson({
    study_uid = study['MainDicomTags']['StudyInstanceUID'],
    series_uid = tags['SeriesInstanceUID'],
    reason = 'Orthanc OnStableSeries'
  }, true)
  local headers = {
    ['Content-Type'] = 'application/json',
    ['Authorization'] = 'Bearer ' .. node['Key']
  }
  if HttpPost(node['Url'] .. '/jobs', body, headers) == nil then
    print('marrow-node did not take series ' .. tags['SeriesInstanceUID'])
  end
end
