"""llama.cpp as a peer: loads a GGUF file once and times what it is asked for, a JSON line a question.

Run by `cpu.py` with the Python that has llama-cpp-python (`COTERIE_LLAMA_PYTHON`); imports nothing of coterie.
Questions on stdin: {"prompt": 512}, {"sequences": 8, "tokens": 16} or {"logits": [ids], "out": "x.npy"}, which writes
float32 [tokens, vocabulary]; answers on stdout: seconds.
"""

import ctypes
import json
import random
import sys
import time

import llama_cpp as ll
import numpy as np


def main() -> None:
    path, threads = sys.argv[1], int(sys.argv[2])
    ll.llama_backend_init()
    silence = ll.llama_log_callback(lambda *_: None)
    ll.llama_log_set(silence, ctypes.c_void_p(0))
    start = time.perf_counter()
    params = ll.llama_model_default_params()
    params.n_gpu_layers = 0
    model = ll.llama_model_load_from_file(path.encode(), params)
    loaded = time.perf_counter() - start
    vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
    print(json.dumps({"load": loaded}), flush=True)
    contexts: dict[int, object] = {}
    for line in sys.stdin:
        question = json.loads(line)
        n = question.get("sequences", 0)
        if n not in contexts:
            contexts[n] = new_context(model, n, threads)
        if "logits" in question:
            seconds = logits(contexts[n], vocab, question["logits"], question["out"])
        elif n:
            seconds = decode(contexts[n], vocab, n, question["tokens"])
        else:
            seconds = prompt(contexts[n], vocab, question["prompt"])
        print(json.dumps({"seconds": seconds}), flush=True)


def new_context(model, n_sequences: int, threads: int):
    params = ll.llama_context_default_params()
    params.n_ctx = 2048
    params.n_batch, params.n_ubatch = 2048, 512
    params.n_threads = params.n_threads_batch = threads
    if n_sequences > 1:
        params.n_seq_max, params.kv_unified = n_sequences, True
    return ll.llama_init_from_model(model, params)


def prompt(context, vocab: int, n: int) -> float:
    ll.llama_memory_clear(ll.llama_get_memory(context), True)
    ids = (ll.llama_token * n)(*(random.randrange(3, vocab) for _ in range(n)))
    start = time.perf_counter()
    assert ll.llama_decode(context, ll.llama_batch_get_one(ids, n)) == 0
    ll.llama_synchronize(context)
    return time.perf_counter() - start


def logits(context, vocab: int, ids: list[int], out: str) -> float:
    """Seconds of one pass over these tokens; the logits of each go to a file."""
    ll.llama_memory_clear(ll.llama_get_memory(context), True)
    n = len(ids)
    start = time.perf_counter()
    batch = ll.llama_batch_init(n, 0, 1)
    batch.n_tokens = n
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
    assert ll.llama_decode(context, batch) == 0
    ll.llama_synchronize(context)
    seconds = time.perf_counter() - start
    np.save(out, np.ctypeslib.as_array(ll.llama_get_logits(context), (n, vocab)))
    ll.llama_batch_free(batch)
    return seconds


def decode(context, vocab: int, n: int, tokens: int) -> float:
    """Seconds of `tokens` steps of n sequences together, after two to warm up."""
    ll.llama_memory_clear(ll.llama_get_memory(context), True)
    start = 0.0
    for position in range(tokens + 2):
        if position == 2:
            start = time.perf_counter()
        batch = ll.llama_batch_init(n, 0, 1)
        batch.n_tokens = n
        for i in range(n):
            batch.token[i], batch.pos[i] = random.randrange(3, vocab), position
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, i, 1
        assert ll.llama_decode(context, batch) == 0
        ll.llama_synchronize(context)
        ll.llama_batch_free(batch)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
