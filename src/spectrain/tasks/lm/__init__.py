"""Causal language modelling: a corpus, a model that predicts its next token, its perplexity.

sources.py     where text comes from: standard library, file, folder, hub data set
files.py       one file of text or JSON lines, read or refused
splits.py      text into train, validation and test
hub.py         everything that goes over the network
tokenizer.py   byte-level BPE, and text into tokens
corpus.py      the tokens of a source, cached
batches.py     tokens into batches (training) and windows (evaluation)
models.py      LLaMA and OPT by name, or any transformers causal language model
loss.py        cross-entropy by chunks of tokens, without whole logits
evaluate.py    exact loss and perplexity
"""
