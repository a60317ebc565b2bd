"""A worker of a distributed-llama (dllama) cluster.

wire: fields of a byte stream. protocol, node_config, op_config: the messages. checks: whether a
node's program is sound. lowering, segment, shared: the program as graphs for our executor. node:
what computes it. Up to here there are no sockets. The rest is the worker: link, exchange
(connections), door (who may come in), weights, streamed, spill (in memory, from disk), run (one
root's visit), meter, report, worker.
"""
