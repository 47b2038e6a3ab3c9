-- Since version 7 a pod's specification may name hooks, its state the one that is owed, and a snapshot's document what they
-- did; what says nothing of them has none. Nothing is changed here: the number keeps earlier programs, which would not
-- know the fields, away.
SELECT 1;
