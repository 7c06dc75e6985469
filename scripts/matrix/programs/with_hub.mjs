// @huggingface/hub: files, whole repositories, and what is told of them.
import assert from "node:assert/strict";
import { mkdtemp, readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as hub from "@huggingface/hub";

const hubUrl = process.env.HF_ENDPOINT;
const repo = "team/plain";
const original = (name) => readFile(join(process.env.ORIGINALS, repo, name));

const files = [];
for await (const file of hub.listFiles({ repo, recursive: true, expand: true, hubUrl })) {
  if (file.type === "file") files.push(file);
}
assert.ok(files.some((file) => file.path === "sub/words.txt"));
const shard = files.find((file) => file.path.endsWith(".safetensors")).path;

assert.equal(await hub.fileExists({ repo, path: "config.json", hubUrl }), true);
assert.equal(await hub.fileExists({ repo, path: "absent.txt", hubUrl }), false);
assert.equal(await hub.checkRepoAccess({ repo, hubUrl }), undefined);
const told = await hub.fileDownloadInfo({ repo, path: shard, hubUrl });
assert.equal(told.size, (await original(shard)).length);
for (const path of [shard, "config.json", "sub/words.txt"]) {
  const blob = await hub.downloadFile({ repo, path, hubUrl });
  assert.deepEqual(Buffer.from(await blob.arrayBuffer()), await original(path));
}
const part = (await hub.downloadFile({ repo, path: shard, hubUrl })).slice(1000, 5000);
assert.deepEqual(Buffer.from(await part.arrayBuffer()), (await original(shard)).subarray(1000, 5000));

assert.equal((await hub.modelInfo({ name: repo, hubUrl })).name, repo);
const [info] = await hub.pathsInfo({ repo, paths: ["config.json"], hubUrl });
assert.equal(info.path, "config.json");
const commits = [];
for await (const commit of hub.listCommits({ repo, hubUrl })) commits.push(commit);
assert.equal(commits[0].oid.length, 40);
const models = [];
for await (const model of hub.listModels({ search: { owner: "team", query: "plain" }, hubUrl })) models.push(model.name);
assert.deepEqual(models, [repo]);
assert.ok((await hub.parseSafetensorsMetadata({ repo, hubUrl })).sharded);

const cacheDir = await mkdtemp(join(tmpdir(), "hub-"));
const folder = await hub.snapshotDownload({ repo, cacheDir, hubUrl });
for (const file of files) {
  assert.deepEqual(await readFile(join(folder, file.path)), await original(file.path));
}
