"""What a request passes: `gate` lets it in, `api` answers it, `wanted` reads it, `orders` has it wait for its turn, `worker`
says it, and `sound` takes it to the client, or `refusals` tells why not. `page` is for people."""
