// @huggingface/transformers: a tokenizer, in the way that browsers fetch it.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { AutoTokenizer, env } from "@huggingface/transformers";

env.remoteHost = process.env.HF_ENDPOINT;
env.useFSCache = false;
const name = "team/tiny-bert";
const tokenizer = await AutoTokenizer.from_pretrained(name);
const { model } = JSON.parse(await readFile(join(process.env.ORIGINALS, name, "tokenizer.json"), "utf-8"));
const ids = tokenizer.encode("one two", { add_special_tokens: false });
assert.deepEqual(ids, [model.vocab.one, model.vocab.two]);
