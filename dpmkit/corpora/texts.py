"""What the demo corpus' speakers say: plain sentences written for this project, neutral in their wording."""

TEXTS = tuple("""
the bus leaves at six; it is on the table; we have two of them; the door is open; he works on the third
floor; she lives near the station; put it in the box; I will call at noon; there are seven chairs; the list
is on the desk; we meet on Tuesday; the shop is next door; it takes ten minutes; that is the second one; the
keys are in the bag; I read it this morning; they moved in May; the paper is in the tray; you can take the
stairs; it is made of wood; the lamp is by the window; we need more paper; the train stops here; I wrote it
down; the road goes to the river; that was last week; the cup is on the shelf; he has a blue coat; it opens
at eight; the meeting is upstairs; I heard it on the radio; take the other one; she sent me the address;
there is a map inside; we go on Thursday; the box is half full; the number is on the card; he is in the
garden; I left it in the car; the water is in the jug; it starts in an hour; you asked about it; they came
by train; the book has two parts; the plates are in the kitchen; I saw it on the way; we talked on Monday;
the bill is in the mail; the clock is in the hall; she has the other half; it is the same colour; the letter
came today; look at the next page; the boat is at the pier; I know the street; he parked by the wall; the
class is at four; we ordered the soup; it rained in the night; the form has three pages; the office is
across the road; I will bring the folder; the cat is on the roof; you said it before; that is my seat; the
screen is on the left; we took the early bus; there is one in each room; she will be here at five; it fits
in there; the bread is in the oven; I spoke to the driver; the gate is around the corner; he told me on
Friday; turn it the other way; the phone is in my pocket; they are on the second page; we came in through
the back; it is down the hall; I have the ticket
""".replace("\n", " ").strip().split("; "))
