#!/usr/bin/env escript
%% Skynet with the argument as the number of leaves (a power of ten): share-nothing, as mpgort is.
-mode(compile).

main([Arg]) ->
    Size = list_to_integer(Arg),
    Started = erlang:monotonic_time(microsecond),
    Self = self(),
    spawn(fun() -> skynet(Self, 0, Size) end),
    Total = receive N -> N end,
    Took = erlang:monotonic_time(microsecond) - Started,
    io:format("sum ~w seconds ~.6f~n", [Total, Took / 1000000]),
    Total = Size * (Size - 1) div 2.

skynet(Up, First, 1) -> Up ! First;
skynet(Up, First, Size) ->
    Self = self(),
    Tenth = Size div 10,
    [spawn(fun() -> skynet(Self, First + I * Tenth, Tenth) end) || I <- lists:seq(0, 9)],
    Up ! sum(10, 0).

sum(0, Total) -> Total;
sum(Left, Total) -> receive N -> sum(Left - 1, Total + N) end.
