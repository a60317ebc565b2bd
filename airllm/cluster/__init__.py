"""A worker of a distributed-llama (dllama) cluster.

wire: fields of a byte stream. protocol, node_config: the messages. checks: whether a node's program
is sound. lowering: the program as graphs for our executor. The rest is the worker: door (who may
come in), run (one root's visit), weights, worker.
"""
