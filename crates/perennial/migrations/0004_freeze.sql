-- Since version 4 a snapshot's document may say how long its pod stood still; one that does not is of before, or of a pod
-- that did not. Nothing is changed here: the number keeps earlier programs, which would not know the field, away.
SELECT 1;
