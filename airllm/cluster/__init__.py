"""A worker of a distributed-llama (dllama) cluster.

wire: fields of a byte stream. protocol, node_config, op_config: the messages. checks: whether a
node's program is sound. lowering, segment, shared: the program as graphs for our executor. node:
runs the graphs. These modules use no sockets. The others are the worker: link, exchange
(connections), door (admission), weights, streamed, spill (weights in memory and on disk), run (one
root's visit), meter, report, worker.
"""
